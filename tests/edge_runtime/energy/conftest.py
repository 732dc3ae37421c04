from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True, kw_only=True)
class FakeFacts:
    source: str = "fake"
    covers: str = "all of it"
    rate_hz: float = 50.0
    resolution: float = 0.0
    gain_error: float = 0.0
    estimated: bool = False
    counter_ranges_j: tuple[float, ...] | None = None


@dataclass
class FakeClock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeMeter:
    """Gives whatever `value` is."""

    value: tuple[float, ...] | None = (5.0,)
    facts: FakeFacts = field(default_factory=FakeFacts)
    closed: bool = False

    def read(self) -> tuple[float, ...] | None:
        return self.value

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class FakeHealth:
    temperature_c: float | None = 50.0
    cpu_hz: float | None = 1.5e9
    throttled: tuple[str, ...] | None = ()
    throttled_since_boot: tuple[str, ...] | None = ()


@pytest.fixture(scope="session")
def facts():
    return FakeFacts


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def meter():
    return FakeMeter()


@pytest.fixture
def health():
    return FakeHealth
