"""How what devices trained becomes one model: FedAvg, rules for conflicting changes, the server optimizer."""
