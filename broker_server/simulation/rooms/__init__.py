"""Rooms: indoor scenes drawn from a seed, ray-cast in numpy, with exact labels for all nine tasks."""
