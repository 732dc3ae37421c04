"""Strategies by name: pure planners over the same rounds. Each module holds one family of them."""

# coverage: every branch
