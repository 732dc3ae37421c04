"""Reasons for a simulation to end before its time."""


class SimulationFailed(RuntimeError):
    """A simulated federation ended before its time; the sentence says why."""


class SimulationStopped(Exception):
    """The simulation is to end before its time; its state is kept."""
