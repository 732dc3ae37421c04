"""The runtime on a board: engine, training, affinity probes and the link to the server."""

__version__ = "0.1.0"
