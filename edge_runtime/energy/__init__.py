"""Joules for each round, group and phase: sampling, integration, a journal that survives a kill, and recordings."""
