"""Whole federations on one machine or cluster, through the field's own state machines, on a simulated clock."""
