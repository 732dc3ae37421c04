"""A model that can be exported: an encoder, a head and a loss for each task, and an example batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge_runtime.wire.graph_names import IMAGE, input_of, value_of
from export.metrics import Chosen, choose
from export.module_state import unchanged
from export.prediction import Loss, Prediction


@dataclass(frozen=True)
class MultiTaskModel:
    """T tasks that share an encoder.

    `encoder` maps the input to the representation z: one tensor (B, …), or a tuple of them, such as the outputs of its
    stages. `heads[task]` maps z, a tensor or a tuple as the encoder returned it, to a prediction, or to several in a
    dictionary or a tuple; `losses[task]` maps what the head returns and a target to a scalar, the mean over the batch.
    `example_input` is a float32 batch (B, …) that a data set calls image, or float32 and int64 batches by the names
    that a data set has for them, such as {"tokens": …, "image": …}: the encoder is then called with these names.
    `example_targets[task]` is a float32 or int64 batch. Parameters are float32 and belong to one part alone.

    `metrics[task]` names what is measured of predictions besides the loss (edge_runtime.wire.metrics), None for
    nothing; by default it is what is usual for the loss. Of several predictions one is measured, as ("mean", "rmse").
    `ignored_classes[task]` is the class that means no label there, by default the one that the loss leaves out, as far
    as that is known.

    With a `stem`, which maps the input to an embedding e, one tensor (B, …), the encoder maps e instead. The encoder
    can then be computed elsewhere than stem and heads. Such a model keeps no running statistics.
    """

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    losses: Mapping[str, Loss]
    example_input: Tensor | Mapping[str, Tensor]
    example_targets: Mapping[str, Tensor]
    stem: nn.Module | None = None
    metrics: Mapping[str, str | tuple[str, str] | None] = field(default_factory=dict)
    ignored_classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in order."""
        return tuple(sorted(self.heads))

    @cached_property
    def one_tensor(self) -> bool:
        """True if the encoder returns a tensor, not a tuple."""
        return isinstance(_run(self, self.encode, self.inputs), Tensor)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The example's inputs by their names in graphs, in order."""
        given = self.example_input
        named = given if isinstance(given, Mapping) else {IMAGE: given}
        return dict(sorted((value_of(name), value) for name, value in named.items()))

    @property
    def examples(self) -> int:
        """The number of samples of the example."""
        return len(next(iter(self.inputs.values())))

    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run the encoder on inputs by their names in graphs, or on the stem's embedding of them."""
        return apply(self.encoder, inputs) if self.stem is None else self.encoder(apply(self.stem, inputs))

    def metric(self, task: str, prediction: Prediction) -> Chosen:
        """Choose the metric of a task whose head gives `prediction` (B, …) for the example. Raises ModelInvalid."""
        return choose(
            task,
            self.losses[task],
            self.example_targets[task],
            prediction,
            metrics=self.metrics,
            ignored_classes=self.ignored_classes,
        )

    def packed(self, z: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Return the representation as the heads take it."""
        return z[0] if self.one_tensor else z

    def parts(self) -> dict[str, nn.Module]:
        """Return the modules by part: `encoder`, `head.<task>` and `stem`, where there is one."""
        stem = {} if self.stem is None else {"stem": self.stem}
        return {"encoder": self.encoder, **{f"head.{task}": self.heads[task] for task in self.tasks}, **stem}


def represent(model: MultiTaskModel) -> tuple[Tensor, ...]:
    """Return the representation of the example batch, in the mode in which the encoder is."""
    return tensors(_run(model, model.encode, model.inputs))


def embed(model: MultiTaskModel) -> Tensor | None:
    """Return the embedding of the example batch, in the mode in which the stem is; None without a stem."""
    return None if model.stem is None else cast("Tensor", _run(model, partial(apply, model.stem), model.inputs))


def apply(module: Callable[..., Any], values: Mapping[str, Tensor]) -> Any:
    """Run a module on values by their names in graphs: x or e as they are, several inputs by the names of their files.

    One input that is not the image is given by its name as well.
    """
    if values.keys() in ({"x"}, {"e"}):
        return module(next(iter(values.values())))
    return module(**{input_of(name): value for name, value in values.items()})


def tensors(z: Any) -> tuple[Tensor, ...]:
    """Return a representation as a tuple, whatever the encoder returned."""
    return (z,) if isinstance(z, Tensor) else tuple(z)


def numbered(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a representation under the names that the graphs give them."""
    return {f"{name}.{i}": value for i, value in enumerate(values)}


def _run(model: MultiTaskModel, module: Callable[[Any], Any], value: Any) -> Any:
    with torch.no_grad(), unchanged(*model.parts().values()):
        return module(value)
