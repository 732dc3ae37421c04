import struct

import pytest

from devices.flashing.partitions import HEAD_BYTES, Partition, PartitionsInvalid, layout, partitions


def head(table):
    return table.ljust(HEAD_BYTES, b"\0")


@pytest.mark.parametrize("kind", [0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E, 0xEF])
def test_layout_of_an_mbr(table, kind):
    found = layout(head(table["mbr"]((kind, 8192, 100), (0x83, 8292, 1000))))
    assert found.boot == Partition(start_bytes=8192 * 512, size_bytes=51_200, is_fat=True)
    assert found.boot.end_bytes == 8292 * 512
    assert found.root == Partition(start_bytes=8292 * 512, size_bytes=512_000, is_fat=False)
    assert found.end_bytes == 9292 * 512


def test_layout_of_a_gpt_takes_the_largest_partition_for_the_root(table):
    entries = (("linux", 4096, 10), ("efi", 2048, 100), ("linux", 9000, 50), ("linux", 9100, 20))
    found = layout(head(table["gpt"](*entries)))
    assert (found.boot.start_bytes, found.boot.size_bytes, found.end_bytes) == (2048 * 512, 51_200, 9120 * 512)
    assert found.root.start_bytes == 9000 * 512


def test_layout_without_a_root_partition(table):
    assert layout(head(table["mbr"]((0x0C, 2048, 10)))).root is None


@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_layout_without_a_boot_partition_is_refused(table, kind):
    of = {"mbr": (0x83, 2048, 10), "gpt": ("linux", 2048, 10)}
    with pytest.raises(PartitionsInvalid, match="it has 1 partitions and none of them is a FAT boot partition"):
        layout(head(table[kind](of[kind])))


@pytest.mark.parametrize("data", [b"", bytes(HEAD_BYTES), b"\x55\xaa" * 10])
def test_partitions_without_a_table_are_refused(data):
    with pytest.raises(PartitionsInvalid, match="no partition table"):
        partitions(data)


def test_partitions_empty_entries_are_left_out(table):
    found = partitions(head(table["mbr"]((0, 5, 5), (0x0C, 2048, 0), (0x0C, 2048, 8))))
    assert [p.size_bytes for p in found] == [4096]


def test_partitions_at_the_table_itself_are_refused(table):
    with pytest.raises(PartitionsInvalid, match="begins at the partition table"):
        partitions(head(table["mbr"]((0x0C, 0, 8))))


@pytest.mark.parametrize(
    ("at", "packed"),
    [(512, b"EFI TRAP"), (512 + 72, struct.pack("<Q", 1 << 60)), (512 + 84, struct.pack("<I", 1))],
    ids=["signature", "entries far away", "entries too small"],
)
def test_partitions_of_a_damaged_gpt_are_refused(table, at, packed):
    data = bytearray(head(table["gpt"](("efi", 2048, 100))))
    data[at : at + len(packed)] = packed
    with pytest.raises(PartitionsInvalid, match="GPT partition table is damaged"):
        partitions(bytes(data))


def test_partitions_of_a_gpt_with_entries_beyond_what_is_known(table):
    data = bytearray(head(table["gpt"](("efi", 2048, 100), ("linux", 1, 0))))
    struct.pack_into("<II", data, 512 + 80, 0xFFFFFFFF, 4096)
    assert len(partitions(bytes(data))) == 1
