"""Whole networks written against plain PyTorch, as a user's file has them: benchmarks run them wide, tests narrow."""
