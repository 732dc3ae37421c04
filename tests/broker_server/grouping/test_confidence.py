import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.grouping.affinity import AffinityLedger
from broker_server.grouping.confidence import by_devices, by_errors, settled_split
from broker_server.grouping.search import SplitImpossible, search
from edge_runtime.wire.messages import Affinity

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "split_golden.json").read_text())
TASKS, VALUES = GOLDEN["tasks"], np.array(GOLDEN["values"])


def ledger(rounds, devices, noise, seed=0, tasks=TASKS, values=VALUES):
    """What devices would measure around some values, each device with an error of its own."""
    random = np.random.default_rng(seed)
    own = {f"d{i}": noise * random.standard_normal(values.shape) for i in range(devices)}
    made = AffinityLedger(tasks)
    for number in rounds:
        for device, error in own.items():
            made.add(number, device, message(values + error, tasks))
    return made


def message(values, tasks=TASKS):
    return Affinity(tasks=tuple(tasks), count=1, mean=tuple(map(tuple, values.tolist())), variance=None)


def test_by_devices_is_sure_where_devices_agree():
    found_before = by_devices(ledger([0, 1], 4, 0.0), 2, "exactly", draws=20)
    assert found_before.split == search(TASKS, VALUES, 2, "exactly")
    assert found_before.confidence == 1.0


def test_by_devices_is_less_sure_the_more_devices_differ():
    some, much = (by_devices(ledger([0], 5, noise), 2, "exactly", draws=50).confidence for noise in (0.1, 50.0))
    assert much < 0.8
    assert much < some <= 1.0


def test_by_devices_is_seeded():
    made = ledger([0], 5, 5.0)
    assert by_devices(made, 3, "exactly", draws=30, seed=1) == by_devices(made, 3, "exactly", draws=30, seed=1)


@pytest.mark.slow
def test_by_devices_counts_by_hand():
    """Two devices want other groups: each is drawn alone in a quarter of the draws, else the mean decides."""
    want, other = np.array([[0, 3, 0], [3, 0, 0], [0, 0, 0.0]]), np.array([[0, 0, 0], [0, 0, 2], [0, 2, 0.0]])
    made = AffinityLedger("abc")
    made.add(0, "x", message(want, "abc"))
    made.add(0, "y", message(other, "abc"))
    found_before = by_devices(made, 2, "exactly", draws=2000)
    assert found_before.split.groups == (("a", "b"), ("c",))
    assert found_before.confidence == pytest.approx(0.75, abs=0.05)


def test_by_devices_of_one_device_is_not_known():
    assert by_devices(ledger([0, 1, 2], 1, 1.0), 2, "exactly").confidence is None


def test_by_devices_counts_draws_without_a_pair_against_the_split():
    """Only y has measured c: it is drawn in three of four draws."""
    made = AffinityLedger("abc")
    made.add(0, "x", message(np.ones((2, 2)), "ab"))
    made.add(0, "y", message(np.diag([1.0, 2.0, 3.0]), "abc"))
    found_before = by_devices(made, 1, "exactly", draws=2000)
    assert found_before.confidence == pytest.approx(0.75, abs=0.05)


def test_by_devices_of_an_incomplete_ledger():
    made = AffinityLedger("abc")
    made.add(0, "x", message(np.ones((2, 2)), "ab"))
    with pytest.raises(SplitImpossible, match="nan"):
        by_devices(made, 2, "exactly")


def test_settled_after_enough_rounds():
    assert settled_split(ledger(range(2), 4, 0.0), 2, "exactly", least=0.9, rounds=3, draws=10) is None
    found = settled_split(ledger(range(3), 4, 0.0), 2, "exactly", least=0.9, rounds=3, draws=10)
    assert found is not None
    assert found.split == search(TASKS, VALUES, 2, "exactly")


def test_settled_not_while_unsure():
    assert settled_split(ledger(range(3), 5, 50.0), 2, "exactly", least=0.9, rounds=2, draws=50) is None


def test_settled_not_by_one_device():
    assert settled_split(ledger(range(3), 1, 0.0), 2, "exactly", least=0.0, rounds=2) is None


def test_settled_not_while_the_best_changes():
    """The last round turns the mean to another division."""
    made = ledger([0, 1], 3, 0.0)
    turned = 10 * VALUES[::-1, ::-1]
    for device in ("d0", "d1", "d2"):
        made.add(2, device, message(turned))
    assert settled_split(made, 2, "exactly", least=0.5, rounds=1, draws=10) is not None
    assert settled_split(made, 2, "exactly", least=0.5, rounds=2, draws=10) is None
    assert settled_split(made.between(2, 2), 2, "exactly", least=0.5, rounds=1, draws=10) is not None


def test_settled_not_while_pairs_are_unmeasured():
    made = AffinityLedger("abc")
    for device in "xy":
        made.add(0, device, message(np.ones((2, 2)), "ab"))
    assert settled_split(made, 2, "exactly", least=0.1, rounds=1) is None
    for device in "xy":
        made.add(1, device, message(np.eye(3), "abc"))
    assert settled_split(made, 2, "exactly", least=0.1, rounds=1, draws=10) is not None
    assert settled_split(made, 2, "exactly", least=0.1, rounds=2, draws=10) is None


def test_by_errors_falls_as_the_errors_grow():
    found = search(TASKS, VALUES, 2, "exactly")
    found_before = by_errors(TASKS, VALUES, np.full((5, 5), 1e-6), found, groups=2)
    unsure = by_errors(TASKS, VALUES, np.full((5, 5), 5.0), found, groups=2)
    assert found_before == 1.0
    assert unsure < 0.5


@given(st.lists(st.floats(0, 5), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1))
def test_weighted_is_the_weighted_mean_of_devices(weights):
    made = ledger([0], 3, 1.0)
    one = [made.weighted(row[None])[0] for row in np.eye(3)]
    expected = sum(weight * values for weight, values in zip(weights, one, strict=True)) / sum(weights)
    np.testing.assert_allclose(made.weighted(np.array([weights]))[0], expected, rtol=1e-9)
