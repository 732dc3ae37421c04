"""Boards: what they are, how they are set up and what power they draw."""
