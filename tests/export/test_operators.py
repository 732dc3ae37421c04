"""The floor: what of PyTorch's own samples was exported in `make coverage-operators` still is, for models of boards."""

import pytest

torch = pytest.importorskip("torch")

from benchmarks.measure import RESULTS  # noqa: E402
from benchmarks.operators import outcome as outcomes  # noqa: E402
from benchmarks.operators.outcome import NOTHING, PASS, of_entry, of_sample  # noqa: E402
from benchmarks.operators.report import EDGE, read, shares  # noqa: E402
from benchmarks.operators.samples import Sample, entries, samples  # noqa: E402
from export.lowering.lower import RULES  # noqa: E402

pytestmark = [pytest.mark.workstation, pytest.mark.filterwarnings("ignore")]

FLOORS = (97.0, 92.0, 92.0, 85.0)
"""Percent of each group of entries."""


@pytest.fixture(scope="module")
def engine():
    from edge_runtime.training.engine import Engine

    return Engine(threads=1)


@pytest.fixture(scope="module")
def measured():
    return read(RESULTS / "operators.json")


def test_shares_that_were_measured_are_above_their_floors(measured):
    for floor, (group, row) in zip(FLOORS, shares(measured).items(), strict=True):
        assert row["percent"] >= floor, group


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 6))])
def test_first_sample_of_what_passed_still_passes(engine, measured, part, monkeypatch):
    monkeypatch.setattr(outcomes, "LIMIT_S", 3600)  # the machine may be a busy one
    known = entries()
    lost = {}
    for name in sorted(EDGE)[part::6]:
        if measured[name]["result"] == PASS:
            outcome = of_sample(next(samples(name, known[name])), engine)
            if outcome.result not in (PASS, NOTHING):
                lost[name] = outcome
    assert lost == {}


def test_wrong_rule_is_noticed(engine, monkeypatch):
    sigmoid = torch.ops.aten.sigmoid.default
    monkeypatch.setitem(RULES, sigmoid, lambda context, _, x: context.add("Tanh", x.name))
    sample = Sample("sigmoid", 0, "", (torch.rand(3, 4, requires_grad=True),), {}, function=torch.sigmoid)
    outcome = of_sample(sample, engine)
    assert outcome.result == "wrong"
    assert of_entry([(sample, outcome)])["result"] == "wrong"


def test_operator_along_the_batch_is_tried_with_fixed_shapes(engine):
    sample = Sample("cumsum", 0, "", (torch.rand(3, 4, requires_grad=True),), {}, function=lambda x: x.cumsum(0)[1:])
    assert of_sample(sample, engine).result == PASS


def test_graph_that_cannot_be_loaded_is_no_pass(engine, monkeypatch):
    monkeypatch.setitem(RULES, torch.ops.aten.sigmoid.default, lambda context, _, x: context.add("MatMul", x.name))
    sample = Sample("sigmoid", 0, "", (torch.rand(3, 4, requires_grad=True),), {}, function=torch.sigmoid)
    assert of_sample(sample, engine).result == "crash"
