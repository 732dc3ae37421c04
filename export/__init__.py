"""From a PyTorch model to a bundle: training graphs, initial weights and a parity report."""
