import pytest

from broker_server.rounds.round_state import RoundTraffic


@pytest.mark.parametrize("up_bytes", [0, None])
@pytest.mark.parametrize("down_bytes", [5, None])
def test_round_traffic_counts_only_what_was_counted_from_the_begin(up_bytes, down_bytes):
    traffic = RoundTraffic(up_bytes=up_bytes, down_bytes=down_bytes)
    traffic.add(up_bytes=3)
    traffic.add(up_bytes=1, down_bytes=2)
    assert traffic.up_bytes == (None if up_bytes is None else 4)
    assert traffic.down_bytes == (None if down_bytes is None else 7)
