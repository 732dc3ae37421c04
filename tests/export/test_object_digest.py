import functools
import random
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.object_digest import Indescribable, object_digest  # noqa: E402

pytestmark = pytest.mark.workstation


def here(module):
    return module == __name__


def digest(*values):
    return object_digest(values, here)


def of_code(text):
    space = {}
    exec(text, space)  # code that is in no file
    return space["f"]


def scaled(factor):
    def loss(prediction, target):
        return factor * ((prediction - target) ** 2).mean()

    return loss


@dataclass
class Settings:
    width: int
    items: object = None

    def doubled(self):
        return 2 * self.width


class Slotted:
    __slots__ = ("width",)

    def __init__(self, width):
        self.width = width


class OnList(list):
    pass


def made(width, **attributes):
    """A class as a function makes it."""
    return type("Made", (nn.Module,), {"__module__": __name__, "width": width, **attributes})


class Pair(NamedTuple):
    a: int
    b: int


def layers(seed=0, **changes):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.LSTM(4, 2))
    for name, value in changes.items():
        setattr(model[2], name, value)
    return model


def hooked():
    model = layers()
    model[0].register_forward_hook(lambda *_: None)
    return model


def shifted():
    model = layers()
    with torch.no_grad():
        model[1].running_mean[0] = 1e-20
    return model


def frozen():
    return layers().requires_grad_(False)


APART = {
    "numbers": [1, 1.0, True, "1", b"1", None, (1,), [1], {1: 1}, {1}, 0.0, -0.0, np.float32(1)],
    "structure": [[1, [2]], [[1], 2], [1, 2], [[1, 2]], ["12"], ["1", "2"]],
    "order": [{"a": 1, "b": 2}, {"b": 2, "a": 1}, OrderedDict(a=1, b=2)],
    "tensors": [
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(3, 2).t(),
        torch.zeros(2, 3, dtype=torch.float64),
        torch.zeros(2, 3, requires_grad=True),
        nn.Parameter(torch.zeros(2, 3)),
        torch.full((2, 3), -0.0),
        torch.zeros(2, 3, dtype=torch.complex64),
        torch.zeros(()),
        torch.zeros(0),
    ],
    "arrays": [np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.ones(2)],
    "lambdas": [lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda y: y - 1, lambda x: x in {1, 2}],
    "functions": [scaled(1.0), scaled(2.0), functools.partial(scaled, 1.0), functools.partial(scaled, 2.0), scaled],
    "builtin": [torch.relu, torch.sigmoid, len, [].append, [1].append, np.add, torch.ops.aten.add.Tensor, str.join],
    "instances": [Settings(1), Settings(2), Settings(1, layers()), Settings(1, layers(seed=1)), Slotted(1), Slotted(2)],
    "containers": [OnList([1]), OnList([2]), Pair(1, 2), Pair(2, 1), Pair],
    "classes": [made(1), made(2), made(1, f=property(lambda self: self)), Settings, nn.Module],
    "methods": [Settings(1).doubled, Settings(2).doubled, Settings.doubled],
    "modules": [
        layers(),
        layers(seed=1),
        layers(p=0.2),
        layers(more=1),
        layers().eval(),
        hooked(),
        shifted(),
        frozen(),
    ],
    "generators": [torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)],
}


@pytest.mark.parametrize("case", APART)
def test_objects_that_differ_have_different_digests(case):
    values = APART[case]
    assert len({digest(value) for value in values}) == len(values)


def test_objects_that_are_alike_have_the_same_digest():
    assert digest(layers()) == digest(layers())
    assert digest(scaled(1.0)) == digest(scaled(1.0))
    assert digest({"b", "a", "c"}) == digest({"c", "b", "a"})
    assert digest(made(1)()) == digest(made(1)())
    assert digest(Settings(1, functools.cached_property(scaled))) == digest(
        Settings(1, functools.cached_property(scaled))
    )


def test_numbers_of_varying_tensors_are_left_out():
    first, other = layers(), layers(seed=1)

    def form(model, varying):
        return object_digest([model], varying=varying)

    assert form(first, first.parameters()) == form(other, other.parameters())
    assert form(first, []) != form(other, [])
    other[0].weight.requires_grad_(False)
    assert form(first, first.parameters()) != form(other, other.parameters())


def test_one_object_in_two_places_is_not_two_that_are_equal():
    weight = torch.zeros(2)
    assert digest([weight, weight]) != digest([weight, weight.clone()])


def test_objects_may_hold_themselves():
    first, second = Settings(1), Settings(1)
    first.items, second.items = first, [second]
    assert digest(first) == digest(first)
    assert digest(first) != digest(second)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


UNKNOWN = {
    "lock": threading.Lock,
    "in_an_attribute": lambda: Settings(1, threading.RLock()),
    "generator": lambda: (x for x in range(3)),
    "random": lambda: random.Random(0),
    "numpy_generator": lambda: np.random.default_rng(0),
    "objects": lambda: np.array([object()]),
    "object": object,
    "set_of_objects": lambda: {Settings},
    "no_file": lambda: of_code("f = lambda x: x"),
    "scripted": lambda: torch.jit.script(nn.ReLU()),
    "sparse": lambda: torch.zeros(2, 2).to_sparse(),
    "deep": lambda: nested(3000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", UNKNOWN)
def test_object_whose_state_cannot_be_seen_is_refused(case):
    value = UNKNOWN[case]()
    with pytest.raises(Indescribable):
        digest(value)
