"""Hold what was compiled to PyTorch."""
