"""The seams: what energy accounting asks of a meter and of a board's health. The boards' own are in `devices`.

They are Protocols, so that a board's meter needs to know nothing of the runtime, and a test no sensor.
"""

from collections.abc import Callable
from typing import Protocol


class MeterUnusable(Exception):
    """The meter that was asked for cannot be used here; a sentence says why."""


class MeterFacts(Protocol):
    """What a meter says about itself. It does not change while the meter is open."""

    @property
    def source(self) -> str:
        """A short name, as `rapl` or `hwmon:ina3221`."""
        ...

    @property
    def covers(self) -> str:
        """What the figures include and what they leave out, for people."""
        ...

    @property
    def rate_hz(self) -> float:
        """How often it is worth reading."""
        ...

    @property
    def resolution(self) -> float:
        """The smallest step of a reading: watts, or joules for counters."""
        ...

    @property
    def gain_error(self) -> float:
        """The largest error in proportion to the reading, as a fraction."""
        ...

    @property
    def estimated(self) -> bool:
        """Nothing is measured: the figures come from a model."""
        ...

    @property
    def counter_ranges_j(self) -> tuple[float, ...] | None:
        """Where each counter goes back to zero, in joules; None for a meter that reads watts."""
        ...


class EnergyMeter(Protocol):
    """Something that reads power, or counts energy."""

    @property
    def facts(self) -> MeterFacts:
        """What it is."""
        ...

    def read(self) -> tuple[float, ...] | None:
        """One value in watts, or every counter in joules; None if it cannot be read now. Never raises, blocks < 1 s."""
        ...

    def close(self) -> None:
        """Let go of files; not read afterwards."""
        ...


class Health(Protocol):
    """How a board is at one moment. None is what the board does not say."""

    @property
    def temperature_c(self) -> float | None:
        """Of the processor."""
        ...

    @property
    def cpu_hz(self) -> float | None:
        """Mean frequency over the cores."""
        ...

    @property
    def throttled(self) -> tuple[str, ...] | None:
        """What holds the board back now, as `under_voltage`."""
        ...

    @property
    def throttled_since_boot(self) -> tuple[str, ...] | None:
        """What has held it back at some time since it started."""
        ...


HealthProbe = Callable[[], Health]
"""Called every few seconds, and at the beginning and the end of a round; never raises."""
