import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.flashing.copying import ReadBackDiffers, read_back, with_boot_partition, write
from devices.flashing.partitions import Partition


@given(
    data=st.binary(min_size=1, max_size=400),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    start=st.integers(0, 400),
    size=st.integers(0, 400),
)
def test_with_boot_partition_takes_the_partition_s_bytes_whatever_the_blocks(tmp_path_factory, data, cuts, start, size):
    size = min(size, max(0, len(data) - start))
    content = tmp_path_factory.mktemp("boot") / "content"
    content.write_bytes(b"\xee" * size)
    blocks, at, n = [], 0, 0
    while at < len(data):
        blocks.append(data[at : at + cuts[n % len(cuts)]])
        at, n = at + len(blocks[-1]), n + 1
    boot = Partition(start_bytes=start, size_bytes=size, is_fat=True)
    got = b"".join(with_boot_partition(blocks, boot, content))
    assert got == data[:start] + b"\xee" * size + data[start + size :]


def test_write_and_read_back(tmp_path):
    blocks = [bytes([n]) * 100_000 for n in range(10)]
    told = []
    descriptor = os.open(tmp_path / "it", os.O_RDWR | os.O_CREAT)
    digest, size = write(descriptor, blocks, told.append)
    assert (digest, size) == (hashlib.sha256(b"".join(blocks)).hexdigest(), 1_000_000)
    read_back(descriptor, size, digest, told.append)
    os.close(descriptor)
    assert sum(told) == 2_000_000


def test_read_back_of_a_changed_byte_is_noticed(tmp_path):
    (tmp_path / "it").write_bytes(b"a" * 1000)
    descriptor = os.open(tmp_path / "it", os.O_RDWR)
    digest = hashlib.sha256(b"a" * 1000).hexdigest()
    os.pwrite(descriptor, b"b", 500)
    with pytest.raises(ReadBackDiffers, match="returns other bytes than were written"):
        read_back(descriptor, 1000, digest, lambda _count: None)
    with pytest.raises(ReadBackDiffers, match="ends at byte 1000 of 2000: it is smaller than it claims"):
        read_back(descriptor, 2000, digest, lambda _count: None)
    os.close(descriptor)
