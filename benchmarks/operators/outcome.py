"""What became of a sample, and of an entry with all its samples."""

import re
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.operators.held import Held, NotApplicable, Wrong
from benchmarks.operators.samples import Sample
from edge_runtime.training.engine import Engine
from edge_runtime.wire.errors import WireError
from export.errors import ExportError

PASS, REFUSED, WRONG, TIMEOUT, CRASH = "pass", "refused", "wrong", "timeout", "crash"
NOTHING = "not applicable"
ORDER = (NOTHING, PASS, REFUSED, WRONG, TIMEOUT, CRASH)
"""From the best."""

LIMIT_S = 60
_FOLDER = re.compile(re.escape(tempfile.gettempdir()) + r"/[^/\s]+/")
"""Of one run, and so in no result."""
ALONG_THE_BATCH = (
    *("along the batch", "neither fixed nor proportional", "other operators for another batch size"),
    "must not follow the batch",
)
"""What a refusal says that is right: the operator mixes samples, or its results are no batch."""

FIXED_ALONE = ("lu_unpack",)
"""PyTorch itself reads outside of these samples when they get longer."""


@dataclass(frozen=True)
class Outcome:
    """A result of `ORDER`, and what was said."""

    result: str
    message: str = ""


class _OutOfTime(BaseException):
    pass


def of_sample(sample: Sample, engine: Engine) -> Outcome:
    """Try a sample batched, and where that is not to be, fixed."""
    if sample.entry not in FIXED_ALONE:
        batched = _either(sample, engine, batched=True)
        right = batched.result == REFUSED and any(text in batched.message for text in ALONG_THE_BATCH)
        if batched.result != NOTHING and not right:
            return batched
    return _either(sample, engine, batched=False)


def of_entry(outcomes: Iterable[tuple[Sample, Outcome]]) -> dict[str, Any]:
    """Return an entry's result, that of its worst sample, for the file of results.

    Samples without dimensions count where there are no others.
    """
    every = list(outcomes)
    counted = [pair for pair in every if not pair[0].scalar] or every
    worst, shown = Outcome(NOTHING, "PyTorch has no sample"), ""
    for sample, outcome in counted:
        if ORDER.index(outcome.result) > ORDER.index(worst.result) or not shown:
            worst, shown = outcome, sample.shown
    counts = Counter(outcome.result for _, outcome in every)
    found: dict[str, Any] = {"result": worst.result, "samples": dict(counts)}
    if worst.result != PASS:
        found |= {"message": worst.message, "sample": shown}
    return found


def _either(sample: Sample, engine: Engine, *, batched: bool) -> Outcome:
    """Try with tensors without gradient as inputs, and where that is refused, as constants."""
    first = _one(sample, engine, batched=batched, constants=False)
    if first.result != REFUSED:
        return first
    second = _one(sample, engine, batched=batched, constants=True)
    return second if second.result == PASS else first


def _one(sample: Sample, engine: Engine, *, batched: bool, constants: bool) -> Outcome:
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LIMIT_S)
    try:
        Held(sample, constants=constants).check(engine, batched=batched)
    except NotApplicable as exc:
        return Outcome(NOTHING, str(exc))
    except Wrong as exc:
        return Outcome(WRONG, str(exc))
    except (ExportError, WireError) as exc:
        return Outcome(REFUSED, str(exc))
    except _OutOfTime:
        return Outcome(TIMEOUT, f"more than {LIMIT_S} s")
    except Exception as exc:  # noqa: BLE001
        text = _FOLDER.sub("", str(exc).strip().partition("\n")[0])[:300]
        return Outcome(CRASH, f"{type(exc).__name__}: {text} ({_place(exc)})")
    finally:
        signal.alarm(0)
    return Outcome(PASS)


def _place(exc: BaseException) -> str:
    frames: Sequence[Any] = traceback.extract_tb(exc.__traceback__)
    ours = [f for f in frames if "/export/" in f.filename or "/edge_runtime/" in f.filename]
    last = (ours or list(frames))[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _late(_: int, __: FrameType | None) -> None:
    raise _OutOfTime
