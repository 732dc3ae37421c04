"""ONNX Runtime training artifacts: made from the same model, for groups of tasks."""
