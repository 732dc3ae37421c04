"""Aggregation of devices' updates into one model: FedAvg, rules for conflicting changes, the server optimizer.

rules.py chooses the rule and has its settings; each rule beside it is a pure function of vectors.
"""
