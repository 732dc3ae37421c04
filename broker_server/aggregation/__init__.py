"""Aggregation of devices' updates into one model: FedAvg, rules for conflicting changes, the server optimizer."""
