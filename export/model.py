"""A model that can be exported: an encoder, a head and a loss for each task, and an example batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn

from edge_runtime.wire.names import TaskName
from export.errors import ModelInvalid
from export.mean_loss import grows_with_batch
from export.metrics import Chosen, choose
from export.running_statistics import BATCH_NORM, check_normalization, running_statistics, unchanged

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MultiTaskModel:
    """T tasks that share an encoder.

    `encoder` maps x (B, …) to the representation z: one tensor (B, …), or a tuple of them, such as the outputs of its
    stages. `heads[task]` maps z, a tensor or a tuple as the encoder returned it, to a prediction;
    `losses[task]` maps a prediction and a target to a scalar, the mean over the batch. `example_input` is a float32
    batch, `example_targets[task]` a float32 or int64 one. Parameters are float32 and belong to one part alone.

    `metrics[task]` names what is measured of predictions besides the loss (edge_runtime.wire.metrics), None for
    nothing; by default it is what is usual for the loss. `ignored_classes[task]` is the class that means no label
    there, by default the one that the loss leaves out, as far as that is known.

    With a `stem`, which maps x to an embedding e, one tensor (B, …), the encoder maps e instead of x. The encoder can
    then be computed elsewhere than stem and heads. Such a model keeps no running statistics.
    """

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    losses: Mapping[str, Loss]
    example_input: Tensor
    example_targets: Mapping[str, Tensor]
    stem: nn.Module | None = None
    metrics: Mapping[str, str | None] = field(default_factory=dict)
    ignored_classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in order."""
        return tuple(sorted(self.heads))

    @cached_property
    def one_tensor(self) -> bool:
        """True if the encoder returns a tensor, not a tuple."""
        return isinstance(_run(self, self.encode, self.example_input), Tensor)

    def encode(self, x: Tensor) -> Any:
        """Run the encoder on x, or on the stem's embedding of it."""
        return self.encoder(x if self.stem is None else self.stem(x))

    def metric(self, task: str, prediction: Tensor) -> Chosen:
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

    def check(self) -> None:
        """Raise ModelInvalid or OperatorUnsupported, with what is wrong and where, if it cannot be exported."""
        if not self.heads:
            raise ModelInvalid("the model has no heads: give at least one task")
        for name in ("losses", "example_targets"):
            if odd := sorted(self.heads.keys() ^ getattr(self, name).keys()):
                raise ModelInvalid(f"task {odd[0]!r} is in heads or in {name}, but not in both")
        for name in ("metrics", "ignored_classes"):
            if odd := sorted(getattr(self, name).keys() - self.heads.keys()):
                raise ModelInvalid(f"{name} has {odd[0]!r}, which is none of the tasks {', '.join(self.tasks)}")
        for task in self.tasks:
            self._check_task_name(task)
        owners: dict[int, str] = {}
        for part, module in self.parts().items():
            self._check_part(part, module, owners)
            if self.stem is not None and (statistics := running_statistics(module)):
                raise ModelInvalid(
                    f"{part}.{next(iter(statistics))}: a model with a stem keeps no running statistics: normalise by "
                    "layers or groups instead of batches"
                )
        self._check_batch()

    @staticmethod
    def _check_task_name(task: str) -> None:
        try:
            msgspec.convert(task, TaskName)
        except msgspec.ValidationError as exc:
            raise ModelInvalid(
                f"task name {task!r}: use lower-case letters, digits and underscores, a letter first, at most 32"
            ) from exc

    @staticmethod
    def _check_part(part: str, module: nn.Module, owners: dict[int, str]) -> None:
        for path, child in module.named_modules(prefix=part):
            check_normalization(child, path)
        for name, parameter in module.named_parameters(prefix=part):
            if parameter.dtype != torch.float32:
                raise ModelInvalid(f"parameter {name} is {parameter.dtype}: only float32 is trained")
            if id(parameter) in owners:
                raise ModelInvalid(f"parameter {name} is shared with {owners[id(parameter)]}: give each part its own")
            owners[id(parameter)] = name
        if not any(True for _ in module.parameters()):
            raise ModelInvalid(f"{part} has no parameters: there is nothing to train")

    def _check_batch(self) -> None:
        x = self.example_input
        if x.dtype != torch.float32 or x.ndim < 2:
            raise ModelInvalid(
                f"example_input is {x.dtype} of shape {tuple(x.shape)}: a float32 batch (B, …) is needed"
            )
        with torch.no_grad(), unchanged(*self.parts().values()):
            before = {name: value.clone() for name, value in self._kept()}
            for module in self.parts().values():
                module.train()
            z = self._checked_encoder(x)
            for value in z if isinstance(z, tuple | list) and z else [z]:
                if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.shape[:1] != x.shape[:1]:
                    raise ModelInvalid(
                        "the encoder must return one float32 tensor whose first dimension is the batch, "
                        "or a tuple of such tensors"
                    )
            z = self.packed(tensors(z))
            shapes = ", ".join(str(tuple(value.shape)) for value in tensors(z))
            for task in self.tasks:
                target = self.example_targets[task]
                if target.dtype not in (torch.float32, torch.int64) or target.shape[:1] != x.shape[:1]:
                    raise ModelInvalid(
                        f"the example target of {task} is {target.dtype} of shape {tuple(target.shape)}: "
                        f"float32 or int64 with {x.shape[0]} samples is needed"
                    )
                with _naming(f"head.{task} fails on the representation, of shape {shapes}"):
                    prediction = self.heads[task](z)
                if not isinstance(prediction, Tensor) or prediction.dtype != torch.float32:
                    raise ModelInvalid(f"head.{task} must return one float32 tensor")
                with _naming(
                    f"the loss of {task} fails on predictions of shape {tuple(prediction.shape)} and its example target"
                ):
                    loss = self.losses[task](prediction, target)
                if not isinstance(loss, Tensor) or loss.shape != () or loss.dtype != torch.float32:
                    raise ModelInvalid(f"the loss of {task} must be a float32 scalar: take the mean over the batch")
                if grows_with_batch(self.losses[task], prediction, target):
                    raise ModelInvalid(
                        f"the loss of {task} adds samples up, so a step would depend on the size of the batch: take "
                        'the mean over the batch (reduction="mean", or the sum divided by len(prediction))'
                    )
                self.metric(task, prediction)
            self._check_unchanged(before)

    def _checked_encoder(self, x: Tensor) -> Any:
        source, given = x, "example_input"
        if self.stem is not None:
            with _naming("the stem fails on example_input"):
                source = self.stem(x)
            if not isinstance(source, Tensor) or source.dtype != torch.float32 or source.shape[:1] != x.shape[:1]:
                raise ModelInvalid("the stem must return one float32 tensor whose first dimension is the batch")
            given = f"the stem's embedding, of shape {tuple(source.shape)}"
        with _naming(f"the encoder fails on {given}"):
            return self.encoder(source)

    def _check_unchanged(self, before: Mapping[str, Tensor]) -> None:
        for name, value in self._kept():
            if name not in before or not torch.equal(before[name], value):
                raise ModelInvalid(
                    f"{name} changes while the model runs: training moves parameters and the statistics of BatchNorm, "
                    "and nothing else may change"
                )

    def _kept(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers that no forward pass may change, by the paths of their modules."""
        for part, module in self.parts().items():
            for path, child in module.named_modules(prefix=part):
                if not isinstance(child, BATCH_NORM):
                    for name, value in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
                        yield f"{path}.{name}", value


def represent(model: MultiTaskModel) -> tuple[Tensor, ...]:
    """Return the representation of the example batch, in the mode in which the encoder is."""
    return tensors(_run(model, model.encode, model.example_input))


def embed(model: MultiTaskModel) -> Tensor | None:
    """Return the embedding of the example batch, in the mode in which the stem is; None without a stem."""
    return None if model.stem is None else cast("Tensor", _run(model, model.stem, model.example_input))


def tensors(z: Any) -> tuple[Tensor, ...]:
    """Return a representation as a tuple, whatever the encoder returned."""
    return (z,) if isinstance(z, Tensor) else tuple(z)


def numbered(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a representation under the names that the graphs give them."""
    return {f"{name}.{i}": value for i, value in enumerate(values)}


def _run(model: MultiTaskModel, module: Callable[[Any], Any], value: Any) -> Any:
    with torch.no_grad(), unchanged(*model.parts().values()):
        return module(value)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # a user's module may raise anything
        text = str(exc).strip().partition("\n")[0]
        raise ModelInvalid(f"{what}: {type(exc).__name__}: {text}") from exc
