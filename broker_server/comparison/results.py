"""What simulations left in their folders: outlines and summaries, of experiments that may still be going on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from broker_server.comparison.comparison import Comparison, ComparisonImpossible, compare
from broker_server.simulation.fleet import WorkCosts
from broker_server.simulation.outline import Outline
from broker_server.simulation.output import COSTS, OUTLINE, RUNS, SUMMARY
from broker_server.simulation.summary import Summary

Found = TypeVar("Found")


def read_all(folders: Sequence[Path], outline: Outline | None = None) -> list[Comparison]:
    """Return the comparisons of some folders; those with the same title are one experiment. `outline` goes over theirs.

    Raises ComparisonImpossible.
    """
    found: dict[str, tuple[str, Outline, list[Summary]]] = {}
    for folder in folders:
        mine = outline or read_outline(folder)
        name = mine.name or folder.resolve().name
        key = mine.title or name
        if key in found:
            first, theirs, summaries = found[key]
            found[key] = (first, _joined(theirs, mine), [*summaries, *read_summaries(folder)])
        else:
            found[key] = (name, mine, read_summaries(folder))
    names = [name for name, *_ in found.values()]
    if len(set(names)) != len(names):
        raise ComparisonImpossible("two experiments have the same name: give the file of one of them another")
    return [compare(*each) for each in found.values()]


def read_outline(folder: Path) -> Outline:
    """Return the outline of a folder's runs, an empty one where none was written. Raises ComparisonImpossible."""
    try:
        return msgspec.json.decode((folder / OUTLINE).read_bytes(), type=Outline)
    except FileNotFoundError:
        return Outline()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ComparisonImpossible(f"{folder / OUTLINE} cannot be read: {exc}") from exc


def read_summaries(folder: Path) -> list[Summary]:
    """Return the summaries of the runs that have finished; those of summary.json where the runs are not there.

    Raises ComparisonImpossible.
    """
    if not folder.is_dir():
        raise ComparisonImpossible(f"{folder} is not a folder: give the one that `simulate --out` has filled")
    found = [_decode(path, Summary) for path in sorted((folder / RUNS).glob(f"*/*/{SUMMARY}"))]
    return found if found or not (folder / SUMMARY).is_file() else _decode(folder / SUMMARY, list[Summary])


def read_costs(folder: Path) -> WorkCosts | None:
    """Return the costs that a folder's runs were modelled with; None where nothing ran. Raises ComparisonImpossible."""
    return _decode(folder / COSTS, WorkCosts) if (folder / COSTS).is_file() else None


def _decode(path: Path, kind: type[Found]) -> Found:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ComparisonImpossible(f"{path} is not what a simulation writes: {exc}") from exc


def _joined(one: Outline, other: Outline) -> Outline:
    sections = {
        name: (*one.sections.get(name, ()), *other.sections.get(name, ()))
        for name in {**one.sections, **other.sections}
    }
    return Outline(
        title=one.title,
        methods=tuple(dict.fromkeys((*one.methods, *other.methods))),
        seeds=tuple(dict.fromkeys((*one.seeds, *other.seeds))),
        sections=sections,
    )
