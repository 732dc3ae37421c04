"""Methods side by side: what simulated experiments came to, as figures, tables and pictures."""
