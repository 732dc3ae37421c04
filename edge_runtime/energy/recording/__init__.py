"""Recordings of a board's power, and the calibration of its meter."""
