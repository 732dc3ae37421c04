import msgspec
import pytest

from edge_runtime.wire.energy import MAX_FLAGS, MAX_J, Energy, PhaseEnergy, above_idle_j, bounded

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


def test_energy_comes_back_as_it_was_sent():
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


def test_above_idle_is_without_the_idle_board_s_power_over_the_same_time():
    assert decode().above_idle_j == 12.0
    assert decode(idle_w=None).above_idle_j is None
    assert decode(energy_j=None).above_idle_j is None
    assert above_idle_j(5.0, 3.0, 2.0) == -1.0


def test_figures_that_no_message_takes_are_not_measured():
    energy = Energy(
        source="mqtt:" + "x" * 300,
        covers="x" * 1000,
        estimated=False,
        sample_rate_hz=50.0,
        energy_j=1e14,
        uncertainty_j=1e14,
        idle_w=1e14,
        seconds=1.0,
        measured_s=1.0,
        gap_s=0.0,
        phases={"train": PhaseEnergy(seconds=1.0, energy_j=1e14, uncertainty_j=1.0)},
        temperature_max_c=50.0,
        cpu_min_hz=None,
        throttled=("throttled",) * 20,
    )
    sent = bounded(energy)
    assert (sent.energy_j, sent.uncertainty_j, sent.idle_w) == (None, None, None)
    assert (sent.phases["train"].energy_j, sent.phases["train"].uncertainty_j) == (None, 1.0)
    assert len(sent.throttled) == MAX_FLAGS
    assert msgspec.json.decode(msgspec.json.encode(sent), type=Energy) == sent
    nothing = decode(source=None, covers=None, energy_j=None, throttled=None)
    assert bounded(nothing) == nothing
