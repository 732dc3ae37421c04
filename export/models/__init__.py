"""Models that are ready to compile: each file has `build` functions without arguments."""
