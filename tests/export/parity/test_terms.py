import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.errors import ParityFailed  # noqa: E402
from export.losses import l2  # noqa: E402
from export.parity.check import ROUNDING, TOLERANCE, check_parity, outputs, relative_errors  # noqa: E402
from export.parity.replay import replayed  # noqa: E402
from export.parity.terms import AbsoluteTerms  # noqa: E402

pytestmark = pytest.mark.workstation
UNIT = 2.0**-24
"""Half of the last place of a number in float32: what one operation rounds."""


def largest(compiled):
    """What the gradients of the encoder's parameters are the sums of, on the example batch."""
    terms = {graph: AbsoluteTerms(lowered) for graph, lowered in compiled.lowered.items()}

    def call(graph, inputs):
        return replayed(compiled.lowered[graph], inputs, {}, torch.float64, terms[graph])[0]

    outputs(compiled, call, compiled.model.inputs)
    backward = [seen.largest() for name, seen in terms.items() if name.startswith("encoder.") and "backward" in name]
    return {name: value for found in backward for name, value in found.items()}


def test_scale_of_a_sum_that_cancels_is_that_of_its_terms():
    """A gradient that is zero, of terms that add up to 3000 without their signs, beside one that is not."""
    exact = {"grad.bias": np.array([1e-17, 0.0]), "grad.weight": np.array([2.0, -1.0])}
    terms = {"grad.bias": 3000.0, "grad.weight": 30.0}

    def error(name, off):
        return relative_errors(exact | {name: exact[name] + off}, exact, exact, terms=terms)[name]

    for name, allowed in (("grad.bias", 3000 * ROUNDING), ("grad.weight", 2 * TOLERANCE)):
        assert error(name, 0.9 * allowed) <= TOLERANCE
        assert error(name, 1.1 * allowed) > TOLERANCE


class Summed(nn.Module):
    """Parameters whose gradients are sums of every kind; the matrix is used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.groups = nn.GroupNorm(2, 4)
        self.running = nn.BatchNorm2d(4)
        self.mix = nn.Linear(4, 4)
        self.layer = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)

    def train(self, mode=True):
        super().train(mode)
        self.running.eval()
        return self

    def forward(self, x):
        y = self.running(self.groups(self.batch(self.conv(x)))).permute(0, 2, 3, 1)
        y = self.layer(self.mix(torch.sin(self.mix(y))))
        return (y * self.scale).permute(0, 3, 1, 2)


def by_definition(model):
    """Σ |term| of the parameters of Summed, by the formulas of the gradients."""
    encoder, heads = copy.deepcopy((model.encoder, dict(model.heads)))
    for part in (encoder, *heads.values()):
        part.double().train()
    calls = []

    def note(module, given, made):
        made.retain_grad()
        calls.append((module, given[0].detach(), made))

    for module in encoder.children():
        module.register_forward_hook(note)
    z = encoder(model.example_input.double())
    sum(model.losses[task](heads[task](z), model.example_targets[task].double()) for task in model.tasks).backward()
    found = {}

    def add(name, terms):
        found[f"grad.{name}"] = found.get(f"grad.{name}", 0) + terms.abs().sum(0)

    def last(value, module):
        """Channels last, all else in the first dimension."""
        return (value if module in (encoder.mix, encoder.layer) else value.movedim(1, -1)).flatten(0, -2)

    names = {module: name for name, module in encoder.named_children()}
    for module, x, made in calls:
        dy, y = last(made.grad, module), last(made.detach(), module)
        if module is encoder.conv:
            taps = functional.unfold(x, 3).movedim(1, -1).flatten(0, -2)
            weight = dy.unsqueeze(2) * taps.unsqueeze(1)
        elif module is encoder.mix:
            weight = dy.unsqueeze(2) * last(x, module).unsqueeze(1)
        else:
            weight = dy * (y - module.bias.detach()) / module.weight.detach()
        if module is encoder.layer:
            add("scale", dy / encoder.scale.detach() * y)
        add(f"{names[module]}.weight", weight)
        add(f"{names[module]}.bias", dy)
    return {name: float(terms.max()) for name, terms in found.items()}


def test_terms_are_those_of_the_gradients(make):
    targets = {"a": torch.rand(2, 1, 6, 6), "b": torch.rand(2, 2, 6, 6)}
    model = make(encoder=Summed(), losses={"a": l2, "b": l2}, example_targets=targets)
    found, expected = largest(compile_model(model)), by_definition(model)
    assert found == pytest.approx(expected, rel=1e-4)


def before_a_normalisation(make):
    """A bias without effect: the normalisation after it takes it out again."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU())
    example = {"example_input": torch.rand(4, 3, 24, 24)}
    targets = {"a": torch.rand(4, 1, 24, 24), "b": torch.rand(4, 2, 24, 24)}
    return compile_model(make(encoder=encoder, example_targets=targets, losses={"a": l2, "b": l2}, **example))


def off_by(run, off):
    """Runs graphs, but the gradient of that bias is off by so much."""

    def spoilt(graph, inputs):
        found = run(graph, inputs)
        return {name: value + np.float32(off) if name == "grad.0.bias" else value for name, value in found.items()}

    return spoilt


def test_parity_does_not_count_the_rounding_of_a_gradient_that_is_zero(make, run):
    """Six units in the last place of the terms are far more than TOLERANCE of all other gradients."""
    compiled = before_a_normalisation(make)
    terms = largest(compiled)["grad.0.bias"]
    assert check_parity(compiled, off_by(run, 6 * UNIT * terms)).max_relative_error <= TOLERANCE


@pytest.mark.parametrize("part", [1e-5, 1e-3])
def test_parity_finds_a_gradient_that_should_be_zero(part, make, run):
    """Off by a part of its terms that is more than they round."""
    compiled = before_a_normalisation(make)
    terms = largest(compiled)["grad.0.bias"]
    with pytest.raises(ParityFailed, match=r"grad\.0\.bias"):
        check_parity(compiled, off_by(run, part * terms))


def saturated(make, function):
    """A layer of which all is saturated: its gradients are what rounding leaves of slopes near zero."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.bias.fill_(7.0)
    example = {"example_input": 8.5 * torch.rand(16, 32), "example_targets": {"a": torch.rand(16, 3)}}
    encoder = nn.Sequential(layer, function(), nn.Flatten())
    return compile_model(make(encoder=encoder, heads={"a": nn.Linear(16, 3)}, losses={"a": l2}, **example))


@pytest.mark.parametrize("function", [nn.Tanh, nn.Sigmoid])
def test_parity_does_not_count_the_rounding_of_saturated_slopes(function, make, run):
    compiled = saturated(make, function)
    terms = largest(compiled)["grad.0.bias"]
    assert check_parity(compiled, off_by(run, 6 * UNIT * terms)).max_relative_error <= TOLERANCE
    with pytest.raises(ParityFailed, match=r"grad\.0\.bias"):
        check_parity(compiled, off_by(run, 1e-5 * terms))


def test_terms_of_a_slope_that_is_not_saturated_are_hardly_more_than_itself(make):
    """What parity allows there stays far below its tolerance for all gradients."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
    compiled = compile_model(make(encoder=encoder, losses={"a": l2, "b": l2}))
    (weight, *_) = (value for name, value in largest(compiled).items() if name == "grad.0.weight")
    model = compiled.model
    z = model.encoder(model.example_input)
    sum(model.losses[task](model.heads[task](z), model.example_targets[task]) for task in model.tasks).backward()
    assert ROUNDING * weight < 0.3 * TOLERANCE * float(model.encoder[0].weight.grad.abs().max())
