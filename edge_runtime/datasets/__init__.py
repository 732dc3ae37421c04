"""Data sets of devices, and their import from Taskonomy's files."""
