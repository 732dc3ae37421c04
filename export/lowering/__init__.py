"""From a trace of ATen operators to an ONNX model: one rule for each operator, in files by family."""

from export.lowering.lower import Translation, lower, unsupported

__all__ = ["Translation", "lower", "unsupported"]
