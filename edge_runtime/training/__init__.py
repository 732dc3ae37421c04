"""Training on a board: parameters as flat vectors, the three graphs composed, affinity probes."""
