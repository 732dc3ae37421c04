"""The server of a federation: rounds, fleet, aggregation, affinities, splits, strategies, state, report.

`python -m broker_server` starts it. Of this project it imports `edge_runtime.wire` alone.
"""
