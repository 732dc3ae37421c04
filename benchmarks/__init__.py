"""Measurements against peers and against ourselves: both sides in one run, alternating, medians and spreads."""
