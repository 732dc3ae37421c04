"""Errors that stop an export.

ExportError
├── ModelInvalid          the model is not a multi-task model as described in export.model
├── OperatorUnsupported   an operator has no translation to ONNX, or cannot be differentiated
├── OrtTrainingImpossible ONNX Runtime training artifacts cannot be made; portable graphs can
└── ParityFailed          the exported graphs disagree with PyTorch
"""

from collections.abc import Iterator
from contextlib import contextmanager

from edge_runtime.wire.errors import WireError


class ExportError(ValueError):
    """Base of everything that stops an export."""


class ModelInvalid(ExportError):
    """The model is not a multi-task model that can be trained in parts."""


class OperatorUnsupported(ExportError):
    """An operator has no translation to ONNX, or cannot be differentiated."""

    def __init__(self, operator: str, module: str, advice: str) -> None:
        module = module.replace("/", ".")  # head/depth.0: a part is one name in the path of a module
        super().__init__(f"operator {operator} in {module} cannot be exported: {advice}")
        self.operator = operator
        self.module = module
        self.advice = advice


class OrtTrainingImpossible(ExportError):
    """ONNX Runtime training artifacts cannot be made of this model or on this machine."""


class ParityFailed(ExportError):
    """The exported graphs disagree with PyTorch by more than is allowed."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn whatever is raised, by a user's code or by torch, into ModelInvalid: `what`, its type and its first line."""
    try:
        yield
    except (ExportError, WireError):
        raise
    except Exception as exc:
        raise ModelInvalid(f"{what}: {described(exc)}") from exc


def described(exc: Exception) -> str:
    """Return the type and the first line of an exception."""
    text = str(exc).strip().partition("\n")[0].rstrip(".: ")
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
