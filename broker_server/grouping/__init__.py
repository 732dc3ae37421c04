"""Grouping of tasks: affinities, the search for groups, and the confidence in it."""
