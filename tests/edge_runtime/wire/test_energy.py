import msgspec
import pytest

from edge_runtime.wire.energy import MAX_J, Energy, PhaseEnergy

MEASURED = {
    "source": "rapl",
    "covers": "package-0",
    "estimated": False,
    "energy_j": 20.0,
    "uncertainty_j": 1.0,
    "idle_w": 2.0,
    "sample_rate_hz": 10.0,
    "seconds": 4.0,
    "measured_s": 4.0,
    "gap_s": 0.0,
    "phases": {"train": {"seconds": 4.0, "energy_j": 20.0, "uncertainty_j": 1.0}},
    "temperature_max_c": None,
    "cpu_min_hz": None,
    "throttled": ["under_voltage"],
}


def decode(**changes):
    return msgspec.json.decode(msgspec.json.encode(MEASURED | changes), type=Energy)


def test_energy_is_what_was_said():
    energy = decode()
    assert energy.phases == {"train": PhaseEnergy(seconds=4.0, energy_j=20.0, uncertainty_j=1.0)}
    assert energy.throttled == ("under_voltage",)
    assert decode(source=None, energy_j=None).energy_j is None


@pytest.mark.parametrize(
    "changes",
    [
        {"energy_j": -1.0},
        {"energy_j": 2 * MAX_J},
        {"idle_w": 1e7},
        {"seconds": -1.0},
        {"source": ""},
        {"source": "x" * 201},
        {"covers": "x" * 501},
        {"phases": {"fly": MEASURED["phases"]["train"]}},
        {"phases": {"train": {"seconds": 4.0}}},
        {"temperature_max_c": 5000.0},
        {"throttled": ["x"] * 17},
        {"throttled": ["<script>"]},
        {"throttled": ["hot\n"]},
        {"watts": 3},
        {"source": None},
        {"source": None, "energy_j": None, "estimated": True},
    ],
)
def test_energy_that_cannot_be_is_refused(changes):
    with pytest.raises(msgspec.ValidationError):
        decode(**changes)
