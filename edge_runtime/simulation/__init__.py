"""Simulated devices: the agent and the training of a real one, on another's clock and link."""
