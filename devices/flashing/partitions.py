"""A disk's partition table, MBR or GPT, with its boot and its root partition, out of the disk's first bytes.

MBR: four entries of 16 bytes from byte 446, with the kind at 4, start and length in sectors at 8 and 12, little-endian;
55 AA at 510. GPT (UEFI specification 2.10, 5.3): a header in sector 1 that states where the entries are, in practice in
sector 2 and after: 128 of 128 bytes, each with the kind, an identity, first and last sector.
"""

# coverage: every branch

import struct
from dataclasses import dataclass

SECTOR_BYTES = 512
HEAD_BYTES = 34 * SECTOR_BYTES
"""The bytes of the disk that hold MBR, GPT header and entries."""
FAT_KINDS = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E, 0xEF})
"""The MBR's kinds of FAT partitions, EFI's included."""
_PROTECTIVE = 0xEE
_EFI_SYSTEM = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
_BASIC_DATA = bytes.fromhex("a2a0d0ebe5b9334487c068b6b72699c7")
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQII")
_GPT_ENTRY = struct.Struct("<16s16sQQ")
_MAX_ENTRIES = 128


class PartitionsInvalid(ValueError):
    """There is no usable partition table, or no FAT partition; the message states which."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A part of the disk, in bytes."""

    start_bytes: int
    size_bytes: int
    is_fat: bool

    @property
    def end_bytes(self) -> int:
        """The first byte after the partition."""
        return self.start_bytes + self.size_bytes


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The first FAT partition, the largest of the others if there is one, and the byte at which the last one ends."""

    boot: Partition
    root: Partition | None
    end_bytes: int


def layout(head: bytes) -> Layout:
    """Return the layout of a disk. `head` is its first HEAD_BYTES. Raises PartitionsInvalid."""
    found = partitions(head)
    boots = [each for each in found if each.is_fat]
    if not boots:
        raise PartitionsInvalid(f"it has {len(found)} partitions and none of them is a FAT boot partition")
    others = [each for each in found if not each.is_fat]
    root = max(others, key=lambda each: each.size_bytes, default=None)
    return Layout(boot=boots[0], root=root, end_bytes=max(each.end_bytes for each in found))


def partitions(head: bytes) -> list[Partition]:
    """Return all partitions, in the table's order. Raises PartitionsInvalid."""
    if len(head) < HEAD_BYTES or head[510:512] != b"\x55\xaa":
        raise PartitionsInvalid("it has no partition table: it is no image of a whole disk")
    entries = [head[446 + 16 * n : 462 + 16 * n] for n in range(4)]
    if any(entry[4] == _PROTECTIVE for entry in entries):
        return _gpt(head)
    found = []
    for entry in entries:
        start, count = struct.unpack_from("<II", entry, 8)
        if entry[4] and count:
            found.append(_partition(start, count, is_fat=entry[4] in FAT_KINDS))
    return found


def _gpt(head: bytes) -> list[Partition]:
    header = _GPT_HEADER.unpack_from(head, SECTOR_BYTES)
    signature, place, count, size = header[0], header[10], header[11], header[12]
    if signature != b"EFI PART" or place * SECTOR_BYTES >= len(head) or size < _GPT_ENTRY.size:
        raise PartitionsInvalid("its GPT partition table is damaged")
    found = []
    for number in range(min(count, _MAX_ENTRIES)):
        at = place * SECTOR_BYTES + number * size
        if at + _GPT_ENTRY.size > len(head):
            break
        kind, _identity, first, last = _GPT_ENTRY.unpack_from(head, at)
        if any(kind) and last >= first:
            found.append(_partition(first, last - first + 1, is_fat=kind in {_EFI_SYSTEM, _BASIC_DATA}))
    return found


def _partition(start: int, count: int, *, is_fat: bool) -> Partition:
    if start == 0:
        raise PartitionsInvalid("a partition of it begins at the partition table")
    return Partition(start_bytes=start * SECTOR_BYTES, size_bytes=count * SECTOR_BYTES, is_fat=is_fat)
