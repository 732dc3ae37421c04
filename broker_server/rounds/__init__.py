"""Rounds of a federation: state machine, validation, journal, and the processes that rounds need."""
