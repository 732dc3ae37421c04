"""What a model must be to be exported (export.model.MultiTaskModel), checked before anything is traced.

Every fault is one sentence that says what is wrong, where, and what to do: first what can be seen without running the
model, then what one run of the example batch shows.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from numbers import Number
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edge_runtime.wire.graph_names import IMAGE, PredictionName
from edge_runtime.wire.manifest import MAX_INPUTS, MAX_PREDICTIONS
from edge_runtime.wire.names import MAX_TASKS, TaskName
from edge_runtime.wire.tensors import MAX_ELEMENTS
from export.errors import ModelInvalid, naming
from export.mean_loss import grows_with_batch
from export.model import MultiTaskModel, apply, tensors
from export.module_state import in_training
from export.prediction import Loss, Prediction, by_name, shapes_of
from export.running_statistics import BATCH_NORM, check_normalization, running_statistics

MAX_RANK = 9
"""Dimensions of an array, the batch included."""
ENCODER = "one float32 tensor whose first dimension is the batch, or a tuple of such tensors"


def check(model: MultiTaskModel) -> None:
    """Raise ModelInvalid or OperatorUnsupported, with what is wrong and where, if a model cannot be exported."""
    _check_form(model)
    owners: dict[int, str] = {}
    for part, module in model.parts().items():
        _check_part(part, module, owners)
        if model.stem is not None and (statistics := running_statistics(module)):
            raise ModelInvalid(
                f"{part}.{next(iter(statistics))}: a model with a stem keeps no running statistics: normalise by "
                "layers or groups instead of batches"
            )
    _check_batch(model)


def _check_form(model: MultiTaskModel) -> None:
    """Types, and the names of the tasks."""
    _check_tasks(model)
    for part, module in model.parts().items():
        _check_module(part, module)
    for task in model.tasks:
        if not callable(model.losses[task]):
            raise ModelInvalid(
                f"the loss of {task} is a {_type(model.losses[task])}: give a function of prediction and target, as "
                "nn.MSELoss() or one of export.losses"
            )
        if not isinstance(model.ignored_classes.get(task, 0), int):
            raise ModelInvalid(f"ignored_classes of {task} is a {_type(model.ignored_classes[task])}: give a class")


def _check_tasks(model: MultiTaskModel) -> None:
    for name in ("heads", "losses", "example_targets", "metrics", "ignored_classes"):
        found: Any = getattr(model, name)
        if not isinstance(found, Mapping | nn.ModuleDict):
            raise ModelInvalid(f"{name} is a {_type(found)}: give a dictionary by the names of the tasks")
        for task in found:
            _check_task_name(task)
    if not model.heads:
        raise ModelInvalid("the model has no heads: give at least one task")
    if len(model.heads) > MAX_TASKS:
        raise ModelInvalid(f"the model has {len(model.heads)} heads: give at most {MAX_TASKS}")
    for name in ("losses", "example_targets"):
        if odd := sorted(set(model.heads) ^ set(getattr(model, name))):
            raise ModelInvalid(f"task {odd[0]!r} is in heads or in {name}, but not in both")
    for name in ("metrics", "ignored_classes"):
        if odd := sorted(set(getattr(model, name)) - set(model.heads)):
            raise ModelInvalid(f"{name} has {odd[0]!r}, which is none of the tasks {', '.join(model.tasks)}")


def _check_task_name(task: Any) -> None:
    _check_name("task", task)
    if task == IMAGE:
        raise ModelInvalid(f"task name {task!r}: data sets call the input so, take another name")


def _check_name(kind: str, name: Any, form: Any = TaskName) -> None:
    try:
        msgspec.convert(name, form)
    except msgspec.ValidationError as exc:
        raise ModelInvalid(
            f"{kind} name {name!r}: use lower-case letters, digits and underscores, a letter first, at most 32"
        ) from exc


def _check_module(part: str, module: Any) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelInvalid(f"{part} is a ScriptModule: give the nn.Module that it was made of")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ModelInvalid(f"{part} is a {_type(module)}: give its .module, a device trains by itself")
    if isinstance(module, torch._dynamo.eval_frame.OptimizedModule):  # noqa: SLF001
        raise ModelInvalid(f"{part} is compiled by torch.compile: give the nn.Module that it was made of")
    if not isinstance(module, nn.Module):
        advice = "wrap it in an nn.Module" if callable(module) else "give an nn.Module"
        raise ModelInvalid(f"{part} is a {_type(module)}: {advice}")


def _check_part(part: str, module: nn.Module, owners: dict[int, str]) -> None:
    for path, child in module.named_modules(prefix=part):
        _check_module(path, child)
        check_normalization(child, path)
        _check_tensors(path, child)
    for name, parameter in module.named_parameters(prefix=part):
        _check_parameter(name, parameter)
        if id(parameter) in owners:
            raise ModelInvalid(f"parameter {name} is shared with {owners[id(parameter)]}: give each part its own")
        owners[id(parameter)] = name
    if not any(True for _ in module.parameters()):
        raise ModelInvalid(f"{part} has no parameters: there is nothing to train")


def _check_tensors(path: str, module: nn.Module) -> None:
    for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if nn.parameter.is_lazy(value):
            raise ModelInvalid(f"{path} is lazy, {name} has no shape yet: run the model once in build()")
        if value.device.type != "cpu" or value.layout != torch.strided:
            raise ModelInvalid(f"{path}.{name} is {_where(value)}: return the model on the CPU, with dense tensors")


def _check_parameter(name: str, parameter: Tensor) -> None:
    if parameter.dtype != torch.float32:
        raise ModelInvalid(f"parameter {name} is {parameter.dtype}: only float32 is trained")
    if not 0 < parameter.numel() <= MAX_ELEMENTS or parameter.ndim >= MAX_RANK:
        raise ModelInvalid(f"parameter {name} has the shape {tuple(parameter.shape)}, which cannot be trained")
    if not parameter.isfinite().all():
        raise ModelInvalid(f"parameter {name} has a value that is not finite: initialise it, or load its weights")


def _check_batch(model: MultiTaskModel) -> None:
    x = _checked_inputs(model)
    for task in model.tasks:
        needed = f"float32 or int64 with {len(x)} samples is needed"
        _check_array(f"the example target of {task}", model.example_targets[task], (torch.float32, torch.int64), needed)
        _check_samples(f"the example target of {task}", model.example_targets[task], x, needed)
    with torch.no_grad(), in_training(*model.parts().values()):
        before = {name: value.clone() for name, value in _kept(model)}
        numbers = dict(_numbers(model))
        z = _checked_encoder(model)
        for value in z if isinstance(z, tuple | list) and z else [z]:
            if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.shape[:1] != x.shape[:1]:
                raise ModelInvalid(f"the encoder must return {ENCODER}{_instead(z)}")
            _check_shape("the representation", value)
        z = model.packed(tensors(z))
        given = shapes_of(z)
        for task in model.tasks:
            target = model.example_targets[task]
            with naming(f"head.{task} fails on the representation, of shape {given}"):
                prediction = model.heads[task](z)
            _check_prediction(task, prediction, x)
            shapes = shapes_of(prediction)
            with naming(f"the loss of {task} fails on predictions of shape {shapes} and its example target"):
                loss, is_broadcast = _loss(model.losses[task], prediction, target)
            if is_broadcast:
                raise ModelInvalid(
                    f"the loss of {task} compares predictions of shape {shapes} with targets of shape "
                    f"{tuple(target.shape)}, each with all others: give both the same shape"
                )
            if not isinstance(loss, Tensor) or loss.shape != () or loss.dtype != torch.float32:
                raise ModelInvalid(
                    f"the loss of {task} must be a float32 scalar: take the mean over the batch{_instead(loss)}"
                )
            if not loss.isfinite():
                raise ModelInvalid(
                    f"the loss of {task} is {float(loss)} for the example batch, in PyTorch itself: give an example "
                    "that has one, or keep roots, logarithms and powers away from zero and from negative numbers"
                )
            if grows_with_batch(model.losses[task], prediction, target):
                raise ModelInvalid(
                    f"the loss of {task} adds samples up, so a step would depend on the size of the batch: take "
                    'the mean over the batch (reduction="mean", or the sum divided by len(prediction))'
                )
            model.metric(task, prediction)
        _check_unchanged(model, before, numbers)


def _check_prediction(task: str, prediction: Any, x: Tensor) -> None:
    several = isinstance(prediction, Mapping | tuple | list)
    found = by_name(prediction) if several else {"": prediction}
    if not 0 < len(found) <= MAX_PREDICTIONS:
        raise ModelInvalid(f"head.{task} returns {len(found)} predictions: return 1 to {MAX_PREDICTIONS}")
    for name, value in found.items():
        where = f"the prediction of {task}"
        needed = f"head.{task} must return a float32 tensor, or several in a dictionary or a tuple"
        if several:
            _check_name("prediction", name, PredictionName)
            where = f"the prediction {name} of {task}"
            needed = f"{where} must be a float32 tensor"
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise ModelInvalid(f"{needed}{_instead(value)}")
        _check_samples(where, value, x, "its first dimension is the batch")
        _check_shape(where, value)


def _loss(function: Loss, prediction: Prediction, target: Tensor) -> tuple[Any, bool]:
    """Return the loss, and whether PyTorch warns that the shapes do not fit and are expanded."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss = function(prediction, target)
    return loss, any("Using a target size" in str(warning.message) for warning in said)


def _check_array(name: str, value: Any, dtypes: tuple[torch.dtype, ...], needed: str) -> None:
    if not isinstance(value, Tensor):
        advice = "torch.from_numpy(…) makes one" if hasattr(value, "__array_interface__") else "give a single one"
        raise ModelInvalid(f"{name} is a {_type(value)}, not a tensor: {advice}")
    if value.dtype not in dtypes:
        raise ModelInvalid(f"{name} is {value.dtype} of shape {tuple(value.shape)}: {needed}")
    if value.device.type != "cpu" or value.layout != torch.strided:
        raise ModelInvalid(f"{name} is {_where(value)}: a dense tensor on the CPU is needed")
    _check_shape(name, value)


def _check_samples(name: str, value: Tensor, x: Tensor, needed: str) -> None:
    if value.shape[:1] != x.shape[:1]:
        raise ModelInvalid(f"{name} is {value.dtype} of shape {tuple(value.shape)}: {needed}")


def _check_shape(name: str, value: Tensor) -> None:
    if value.ndim > MAX_RANK or value.numel() == 0:
        problem = "holds nothing" if value.numel() == 0 else f"more than {MAX_RANK} dimensions"
        raise ModelInvalid(f"{name} has the shape {tuple(value.shape)}, {problem}: give samples of some elements")


def _checked_inputs(model: MultiTaskModel) -> Tensor:
    """Check the example's inputs; return one of them."""
    given = model.example_input
    if not isinstance(given, Mapping):
        if isinstance(given, tuple | list):
            raise ModelInvalid(
                f"example_input is a {_type(given)}: give one batch, or several by the names that a data set has for "
                'them, as {"image": …, "place": …}'
            )
        needed = "a float32 batch (B, …) is needed"
        if isinstance(given, Tensor) and not given.is_floating_point():
            needed += ', or integers with a name, as example_input={"tokens": …}'
        _check_array("example_input", given, (torch.float32,), needed)
        if given.ndim < 2:
            raise ModelInvalid(f"example_input is {given.dtype} of shape {tuple(given.shape)}: {needed}")
        return given
    if not 0 < len(given) <= MAX_INPUTS:
        raise ModelInvalid(f"example_input has {len(given)} inputs: give 1 to {MAX_INPUTS}")
    first: Tensor | None = None
    for name, value in given.items():
        _check_input_name(name, model)
        where = f"example_input[{name!r}]"
        needed = "a batch (B, …) of float32 or int64 is needed" if first is None else f"{len(first)} samples are needed"
        _check_array(where, value, (torch.float32, torch.int64), needed)
        if name == IMAGE and value.dtype != torch.float32:
            raise ModelInvalid(f"{where} is {value.dtype}: an image is float32, give integers another name")
        first = value if first is None else first
        _check_samples(where, value, first, needed)
    assert first is not None
    return first


def _check_input_name(name: Any, model: MultiTaskModel) -> None:
    _check_name("input", name)
    if name in model.heads:
        raise ModelInvalid(f"{name!r} is an input and a task: a data set has one file of a name, so rename one of them")


def _checked_encoder(model: MultiTaskModel) -> Any:
    source, given, count = model.inputs, "example_input", model.examples
    if model.stem is not None:
        with naming("the stem fails on example_input"):
            e = apply(model.stem, source)
        if not isinstance(e, Tensor) or e.dtype != torch.float32 or e.shape[:1] != (count,):
            raise ModelInvalid("the stem must return one float32 tensor whose first dimension is the batch")
        _check_shape("the stem's embedding", e)
        source, given = {"e": e}, f"the stem's embedding, of shape {tuple(e.shape)}"
    with naming(f"the encoder fails on {given}"):
        return apply(model.encoder, source)


def _check_unchanged(model: MultiTaskModel, before: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    for name, value in _kept(model):
        if name not in before or not torch.equal(before[name], value):
            raise ModelInvalid(
                f"{name} changes while the model runs: training moves parameters and the statistics of BatchNorm, "
                "and nothing else may change"
            )
    for name, number in _numbers(model):
        earlier = numbers.get(name, number)
        if earlier != number and repr(earlier) != repr(number):  # NaN is not even NaN
            raise ModelInvalid(
                f"{name} changes while the model runs, which no graph can follow: keep what it counts out of the model"
            )


def _kept(model: MultiTaskModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that no forward pass may change, by the paths of their modules."""
    for path, child in _modules(model):
        if not isinstance(child, BATCH_NORM):
            for name, value in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
                yield f"{path}.{name}", value


def _numbers(model: MultiTaskModel) -> Iterator[tuple[str, Any]]:
    """Attributes of modules that are numbers, which no forward pass may change."""
    for path, child in _modules(model):
        yield from ((f"{path}.{name}", value) for name, value in vars(child).items() if isinstance(value, Number))


def _modules(model: MultiTaskModel) -> Iterator[tuple[str, nn.Module]]:
    for part, module in model.parts().items():
        yield from module.named_modules(prefix=part)


def _type(value: Any) -> str:
    return "function" if isinstance(value, Callable) and hasattr(value, "__code__") else type(value).__name__  # type: ignore[arg-type]


def _where(value: Tensor) -> str:
    return f"on {value.device}" if value.device.type != "cpu" else str(value.layout)


def _instead(found: Any) -> str:
    """Return what was found instead, where that is not a tensor of another type alone."""
    if isinstance(found, Tensor):
        return f"; it is {found.dtype} of shape {tuple(found.shape)}"
    if isinstance(found, tuple | list) and found:
        return f"; it returns a {_type(found)} of {', '.join(_type(value) for value in found)}"
    return f"; it returns a {_type(found)}"
