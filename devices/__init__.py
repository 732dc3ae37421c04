"""Boards: their profiles, their setup, and meters of their power."""
