"""Measurements in the field: recordings of a board's power, their calibration, and what a federation has cost."""
