"""Boards that are not set up by a card: Jetsons by their root file system, and boards that run already by SSH."""
