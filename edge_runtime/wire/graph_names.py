"""The names of a bundle's graphs, of its parts, and of the values that go in and out of a graph.

Graph names, inputs and outputs (B is the micro-batch, the only dimension that varies):

    training mode
    encoder.<k>.forward    reads                   → writes, next.<name> …
    encoder.<k>.backward   reads, d<write> …       → d<read> …, grad.<name> …     recomputes the forward pass
    encoder.<k>.keep       reads                   → writes, saved.0 …, next.<name> …
    encoder.<k>.kept       saved.0 …, d<write> …   → d<read> …, grad.<name> …     reads too, where it uses them
    head.<task>.step       z.0 …, target (B, …)    → loss (), dz.0 (B, …) …, grad.<name> …, next.<name> …
    head.<task>.loss       z.0 …, target           → loss ()
    stem.forward           x (B, …)                → e (B, …)
    stem.backward          x, de                   → grad.<name> …                recomputes the forward pass

    evaluation mode
    stem.predict           x                       → e
    encoder.predict        x, or e                 → z.0 …
    head.<task>.evaluate   z.0 …, target           → loss ()
    head.<task>.predict    z.0 …                   → prediction (B, …), or prediction.<name> of each of several

The model's inputs are x, which is the image, and x.<name> for every other: a window of a signal, a row of a table,
tokens. Where x stands, it is all of them.

In training the encoder is a chain of stages, k = 0, 1 …, so that its backward pass needs the activations of one stage
at a time. A stage reads and writes values: x, the arrays z.0, z.1 … of the representation, and those that only later
stages want, v.0, v.1 …; d<value> is ∂L/∂value, a sum where several read it (nothing is for x). What a stage's backward
pass needs is recomputed (forward, backward) or saved (keep, kept), as the device chooses for each stage.

A graph has as inputs those parameters of its part that it uses, param.<name>, and, where it uses them, the state of its
part as state.<name> and seed () int64, which fixes what is random (dropout). The names are the tensors' without their
part: heads of the same form are then the same file, which is sent, kept and loaded once; and so are the graphs of both
modes where a model makes no difference between them. The representation is one or more arrays; a head's graph has those
as inputs that it uses, and all of dz. State moves where a training graph says so: next.<name> is its value after the
batch (of forward, keep and step; the backward pass moves nothing).
"""

# coverage: every branch

from typing import Annotated

from msgspec import Meta

from edge_runtime.wire.names import Tasks

IMAGE = "image"
"""The input that a data set has where it names no others."""

GraphName = Annotated[
    str,
    Meta(
        pattern=r"^(encoder\.(predict|[0-9]{1,2}\.(forward|backward|keep|kept))|stem\.(forward|backward|predict)"
        r"|head\.[a-z][a-z0-9_]{0,31}\.(step|loss|evaluate|predict))\Z"
    ),
]
PartName = Annotated[str, Meta(pattern=r"^(encoder|stem|head\.[a-z][a-z0-9_]{0,31})\Z")]
PredictionName = Annotated[str, Meta(pattern=r"^([a-z][a-z0-9_]{0,31}|[0-9]{1,2})\Z")]
"""The name of one of a task's several predictions, or its number in a tuple."""
ValueName = Annotated[str, Meta(pattern=r"^(x(\.[a-z][a-z0-9_]{0,31})?|e|[zv]\.(0|[1-9][0-9]{0,2}))\Z")]


def value_of(name: str) -> str:
    """Return the name in graphs of an input, by the name of its file in a data set."""
    return "x" if name == IMAGE else f"x.{name}"


def input_of(value: str) -> str:
    """Return the name of an input's file in a data set, by its name in graphs."""
    return IMAGE if value == "x" else value.removeprefix("x.")


def is_input(value: str) -> bool:
    """Return whether a value's name in graphs is that of an input, which has no gradient."""
    return value.partition(".")[0] == "x"


def prediction_of(name: str) -> str:
    """Return the name in graphs of one of several predictions; of the only one, which has no name, `prediction`."""
    return f"prediction.{name}" if name else "prediction"


def graph_names(
    tasks: Tasks, stages: int, *, stem: bool = False, fixed_stages: int = 0, fixed_stem: bool = False
) -> tuple[str, ...]:
    """Return the names of the graphs of a bundle of these tasks and stages, with a stem or without.

    The first `fixed_stages` have nothing to train, and with `fixed_stem` the stem has nothing.
    """
    encoder = [f"encoder.{k}.{kind}" for k in range(stages) for kind in ("forward", "backward", "keep", "kept")]
    unwanted = {f"encoder.{k}.{kind}" for k in range(fixed_stages) for kind in ("backward", "keep", "kept")}
    heads = (f"head.{task}.{kind}" for task in tasks for kind in ("step", "loss", "evaluate", "predict"))
    before = ["stem.forward", *([] if fixed_stem else ["stem.backward"]), "stem.predict"] if stem else []
    return ("encoder.predict", *(name for name in encoder if name not in unwanted), *heads, *before)


def parts_of(tasks: Tasks, *, stem: bool) -> tuple[str, ...]:
    """Return the names of the parts of a bundle of these tasks, with a stem or without."""
    return ("encoder", *(f"head.{task}" for task in tasks), *(("stem",) if stem else ()))


def graph_part(graph: str) -> str:
    """Return the name of the part that a graph belongs to."""
    return "encoder" if graph.startswith("encoder.") else graph.rpartition(".")[0]
