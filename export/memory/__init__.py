"""The memory that training takes: liveness, arena and footprint."""
