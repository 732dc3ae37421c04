from dataclasses import dataclass, field

import pytest

from devices.health import Health
from devices.meters.meter import MeterFacts


def make_facts(**changes) -> MeterFacts:
    usual = {"source": "fake", "covers": "all of it", "rate_hz": 50.0, "resolution": 0.0, "gain_error": 0.0}
    return MeterFacts(**(usual | changes))


@dataclass
class FakeClock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeMeter:
    """Gives whatever `value` is."""

    value: tuple[float, ...] | None = (5.0,)
    facts: MeterFacts = field(default_factory=make_facts)
    closed: bool = False

    def read(self) -> tuple[float, ...] | None:
        return self.value

    def close(self) -> None:
        self.closed = True


def make_health(**changes) -> Health:
    usual = {"temperature_c": 50.0, "cpu_hz": 1.5e9, "throttled": (), "throttled_since_boot": ()}
    return Health(**(usual | changes))


@pytest.fixture(scope="session")
def facts():
    return make_facts


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def meter():
    return FakeMeter()


@pytest.fixture
def health():
    return make_health
