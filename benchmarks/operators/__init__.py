"""`make coverage-operators`: how many of PyTorch's operators can be exported, by PyTorch's own samples."""
