"""From a trace of ATen operators to an ONNX model: one rule for each operator, in files by family."""

from export.lowering.lower import lower, unsupported

__all__ = ["lower", "unsupported"]
