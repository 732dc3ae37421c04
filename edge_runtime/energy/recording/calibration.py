"""The calibration of a meter at known loads: true watts = gain · reading + offset.

Two recordings at loads that a better meter states give both numbers; more loads give the least squares and the largest
error left. The file is TOML and names the source that it is for.
"""

# coverage: every branch

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_BYTES = 16 * 1024
MIN_SPREAD_W = 0.2
"""Two loads that lie closer together than this give a gain of noise."""
_LEAST_GAIN, _LARGEST_GAIN = 0.5, 2.0


class CalibrationInvalid(ValueError):
    """The loads, or the file, give no calibration; the sentence states why."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The correction of a source's readings. `residual_w` is the largest error left at the loads."""

    source: Annotated[str, Meta(min_length=1, max_length=200)]
    gain: Annotated[float, Meta(ge=_LEAST_GAIN, le=_LARGEST_GAIN)]
    offset_w: Annotated[float, Meta(ge=-1000, le=1000)]
    residual_w: Annotated[float, Meta(ge=0)]

    def true_w(self, watts: float) -> float:
        """Return a reading corrected."""
        return self.gain * watts + self.offset_w


def fit(source: str, loads: Sequence[tuple[float, float]]) -> Calibration:
    """Fit a straight line to loads of (true watts, read watts), by least squares. Raises CalibrationInvalid."""
    if len(loads) < 2:
        raise CalibrationInvalid("a calibration needs two known loads, one low and one high")
    true, read = [load[0] for load in loads], [load[1] for load in loads]
    if max(true) - min(true) < MIN_SPREAD_W or max(read) - min(read) < MIN_SPREAD_W:
        raise CalibrationInvalid(
            f"the loads lie within {max(true) - min(true):.2f} W (read: {max(read) - min(read):.2f} W): take one where "
            "the board is idle and one where all cores compute"
        )
    middle_read, middle_true = sum(read) / len(read), sum(true) / len(true)
    gain = sum((r - middle_read) * (t - middle_true) for t, r in loads) / sum((r - middle_read) ** 2 for r in read)
    offset_w = middle_true - gain * middle_read
    if not _LEAST_GAIN <= gain <= _LARGEST_GAIN:
        raise CalibrationInvalid(
            f"the meter would be off by a factor of {gain:.2f}: that is a wrong shunt or a wrong wiring, not an error "
            "to be calibrated"
        )
    residual_w = max(abs(gain * r + offset_w - t) for t, r in loads)
    return Calibration(source=source, gain=gain, offset_w=offset_w, residual_w=residual_w)


def encode(calibration: Calibration) -> bytes:
    """Return the file's content."""
    return (
        f'source = "{calibration.source}"\n'
        f"gain = {calibration.gain:.6f}\n"
        f"offset_w = {calibration.offset_w:.6f}\n"
        f"residual_w = {calibration.residual_w:.6f}\n"
    ).encode()


def read(path: Path) -> Calibration:
    """Read a calibration from its file. Raises CalibrationInvalid."""
    try:
        with path.open("rb") as file:
            return msgspec.toml.decode(file.read(MAX_BYTES), type=Calibration)
    except OSError as exc:
        raise CalibrationInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise CalibrationInvalid(f"{path} is no calibration: {exc}") from exc
