"""Replays that leave out what is known give what whole replays give, bit for bit."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.parity.branch_decisions import deciding_values  # noqa: E402
from export.parity.check import _computing, outputs  # noqa: E402
from export.parity.replay import SharedReplay, replayed  # noqa: E402

pytestmark = pytest.mark.workstation


@pytest.fixture(scope="module")
def calls():
    """All calls of a model's graphs by operators: what is shared, and what each gives by itself."""
    from export.losses import l1
    from export.model import MultiTaskModel

    torch.manual_seed(0)

    def head():
        return nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 1, 1))

    model = MultiTaskModel(
        encoder=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        # The last one is the same graph in training and in evaluation, on other values.
        heads={"a": head(), "b": head(), "c": nn.Conv2d(4, 1, 1)},
        losses=dict.fromkeys("abc", l1),
        example_input=torch.rand(3, 3, 6, 6),
        example_targets={name: torch.rand(3, 1, 6, 6) for name in "abc"},
    )
    compiled = compile_model(model, stages=2)
    shared = SharedReplay(compiled.lowered, torch.float32)
    found = []

    def call(name, arrays):
        results = shared(name, arrays)
        found.append((name, arrays, results, replayed(compiled.lowered[name], arrays, {})[0]))
        return results

    outputs(compiled, call, model.inputs)
    return compiled, found


def test_shared_replay_gives_what_each_graph_gives_by_itself(calls):
    compiled, found = calls
    assert {name for name, *_ in found} == compiled.graphs.keys()
    for name, _, shared, own in found:
        assert shared.keys() == own.keys()
        for key in own:
            np.testing.assert_array_equal(shared[key], own[key], f"{key} of {name}")


def test_replay_of_some_outputs_gives_what_the_whole_replay_gives(calls):
    compiled, found = calls
    for name, arrays, _, own in found:
        graph = compiled.lowered[name]
        values = deciding_values(graph).values()
        for key in {*own, *values}:
            part = _computing(graph, {key})
            assert len(part.trace.steps) <= len(graph.trace.steps)
            results, _ = replayed(part, arrays, {})
            assert results.keys() == {key}
            if key in own:
                np.testing.assert_array_equal(results[key], own[key], f"{key} of {name}")
    step = compiled.lowered["head.a.step"]
    assert len(_computing(step, {"grad.3.bias"}).trace.steps) < len(step.trace.steps)
