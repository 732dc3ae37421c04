import pytest

from edge_runtime.wire.link import packet_bytes


@pytest.mark.parametrize(("size", "header"), [(0, 2), (100, 2), (200, 3), (20_000, 4), (3_000_000, 5)])
def test_packet_bytes_is_the_size_of_the_publish(size, header):
    assert packet_bytes("é", bytes(size)) == header + 2 + 2 + 2 + size
