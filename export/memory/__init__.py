"""How much memory training takes: liveness, arena and footprint."""
