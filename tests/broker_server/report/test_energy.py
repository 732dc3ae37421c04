import pytest

from broker_server.report.energy import joules, label, total


def test_total_adds_what_was_measured(make_energy):
    first = make_energy(joules=10.0, phases={"download": 1.0, "train": 9.0}, temperature_max_c=60.0, throttled=())
    second = make_energy(joules=20.0, phases={"train": 20.0}, temperature_max_c=70.0, throttled=("under_voltage",))
    found = total([first, second])
    assert (found.energy_j, found.estimated_j, found.estimated) == (30.0, 0.0, False)
    assert found.uncertainty_j == pytest.approx(3.0)
    assert found.above_idle_j == 30.0 - 2 * 1.0 * 4.0
    assert (found.measured, found.plans, found.partial) == (2, 2, False)
    assert {name: (part.energy_j, part.seconds) for name, part in found.phases.items()} == {
        "download": (1.0, 2.0),
        "train": (29.0, 4.0),
    }
    assert (found.temperature_max_c, found.throttled) == (70.0, ("under_voltage",))
    assert label(found) == "30.0 J"


def test_total_of_a_fleet_that_is_partly_measured_says_so(make_energy):
    found = total([make_energy(joules=10.0), make_energy(joules=None), None])
    assert (found.energy_j, found.measured, found.plans, found.partial) == (10.0, 1, 3, True)
    assert (found.phases["train"].measured, found.phases["train"].plans) == (1, 2)
    assert label(found) == "≥ 10.0 J (1 of 3 measured)"
    assert label(found.phases["train"]) == "≥ 10.0 J (1 of 2 measured)"


@pytest.mark.parametrize("plans", [0, 2])
def test_total_of_nothing_measured_is_none_and_not_zero(make_energy, plans):
    found = total([make_energy(joules=None), None][:plans])
    assert (found.energy_j, found.estimated_j, found.uncertainty_j, found.above_idle_j) == (None,) * 4
    assert (found.estimated, found.partial, found.temperature_max_c, found.throttled) == (False, False, None, None)
    assert label(found) == "–"
    assert all(label(part) == "–" for part in found.phases.values())


def test_total_says_how_much_of_it_is_estimated(make_energy):
    model = make_energy(joules=5.0, source="model", estimated=True)
    assert label(total([model])) == "5.00 J (estimated)"
    assert label(total([model, None])) == "≥ 5.00 J (estimated, 1 of 2 measured)"
    mixed = total([model, make_energy(joules=10.0)])
    assert (mixed.energy_j, mixed.estimated_j, mixed.estimated) == (15.0, 5.0, True)
    assert label(mixed) == "15.0 J (5.00 J of it estimated)"
    assert mixed.phases["train"].estimated_j == 5.0


def test_above_idle_needs_every_baseline(make_energy):
    with_one, without = make_energy(joules=10.0), make_energy(joules=10.0, idle_w=None)
    assert total([with_one, without]).above_idle_j is None
    assert total([with_one, None]).above_idle_j == 6.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234 J"), (12.34, "12.3 J"), (1.234, "1.23 J"), (0.01234, "0.0123 J"), (-15.0, "-15.0 J"), (0.0, "0 J")],
)
def test_joules_have_three_digits(value, text):
    assert joules(value) == text
