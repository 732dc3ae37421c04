"""Data sets: what a device trains on, Taskonomy's files, rendered rooms, and the way from the one to the other."""
