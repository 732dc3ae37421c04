import bz2
import gzip
import hashlib
import lzma
import zipfile

import pytest

from devices.flashing.image import ImageInvalid, blocks, survey
from devices.flashing.partitions import HEAD_BYTES

SIZE = 3 << 20


@pytest.fixture
def raw(table):
    """A disk of 3 MiB with a FAT partition of 1 MiB, which holds nothing that a file system would."""
    body = bytes(range(256)) * (SIZE // 256)
    return table["mbr"]((0x0C, 2048, 2048), (0x83, 4096, 2048)) + body[512:]


def pack(how, path, raw):
    if how == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme.txt", "hello")
            archive.writestr("2025/board.img", raw)
    else:
        path.write_bytes(
            {"xz": lzma.compress, "gz": gzip.compress, "bz2": lambda data: bz2.compress(data, 1), "img": bytes}[how](
                raw
            )
        )
    return path


@pytest.mark.parametrize("how", ["img", "xz", "gz", "bz2", "zip"])
def test_survey_reads_whatever_the_name_says(tmp_path, raw, how):
    path = pack(how, tmp_path / "download", raw)
    told = []
    found = survey(path, tmp_path / "boot", progress=told.append)
    assert (found.size_bytes, sum(told)) == (SIZE, SIZE)
    assert found.sha256 == hashlib.sha256(raw).hexdigest()
    assert found.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "boot").read_bytes() == raw[1 << 20 : 2 << 20]
    assert found.root_copy.read_bytes() == raw[2 << 20 : 3 << 20]
    assert (found.boot.start_bytes, found.boot.size_bytes) == (1 << 20, 1 << 20)


@pytest.mark.parametrize("how", ["img", "xz", "gz", "bz2", "zip"])
def test_survey_truncated_is_refused(tmp_path, raw, how):
    path = pack(how, tmp_path / "board", raw)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(ImageInvalid, match="board .*truncated.*download it again"):
        survey(path, tmp_path / "boot")


@pytest.mark.parametrize("how", ["xz", "gz", "bz2", "zip"])
def test_survey_damaged_in_the_middle_is_refused(tmp_path, raw, how):
    path = pack(how, tmp_path / "board", raw)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(b ^ 0xFF for b in data[middle : middle + 8])
    path.write_bytes(data)
    with pytest.raises(ImageInvalid, match="damaged or truncated|truncated"):
        survey(path, tmp_path / "boot")


def test_survey_several_xz_streams_are_one_image(tmp_path, raw):
    path = tmp_path / "board.xz"
    path.write_bytes(lzma.compress(raw[:1000]) + lzma.compress(raw[1000:]))
    assert survey(path, tmp_path / "boot").size_bytes == SIZE


@pytest.mark.parametrize("of", ["file", "image"])
def test_survey_checksum_of_the_file_or_the_image(tmp_path, raw, of):
    path = pack("xz", tmp_path / "board.img.xz", raw)
    stated = hashlib.sha256(path.read_bytes() if of == "file" else raw).hexdigest()
    assert survey(path, tmp_path / "boot", sha256=stated.upper()).sha256 == hashlib.sha256(raw).hexdigest()


def test_survey_wrong_checksum_is_refused_with_all_three(tmp_path, raw):
    path = pack("img", tmp_path / "board.img", raw)
    with pytest.raises(ImageInvalid, match=f"has SHA-256 {hashlib.sha256(raw).hexdigest()} .*, not {'a' * 64}"):
        survey(path, tmp_path / "boot", sha256="a" * 64)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds 0 bytes: it is no image of a disk"),
        (b"hello" * 100, "holds 500 bytes"),
        (bytes(HEAD_BYTES * 2), "no partition table"),
    ],
)
def test_survey_no_disk_image_is_refused(tmp_path, content, said):
    (tmp_path / "it").write_bytes(content)
    with pytest.raises(ImageInvalid, match=said):
        survey(tmp_path / "it", tmp_path / "boot")


def test_survey_without_a_boot_partition_is_refused(tmp_path, table):
    (tmp_path / "it").write_bytes(table["mbr"]((0x83, 2048, 10)).ljust(SIZE, b"\0"))
    with pytest.raises(ImageInvalid, match="it cannot be set up: .*none of them is a FAT boot partition"):
        survey(tmp_path / "it", tmp_path / "boot")


def test_survey_zip_with_several_or_no_images_is_refused(tmp_path):
    for names in ((), ("a.img", "b.img")):
        with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
            archive.writestr("readme", "")
            for name in names:
                archive.writestr(name, b"x")
        with pytest.raises(ImageInvalid, match=f"holds {len(names)} images"):
            list(blocks(tmp_path / "it.zip"))


def test_survey_locked_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.writestr("a.img", b"x")
    data = bytearray((tmp_path / "it.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "it.zip").write_bytes(data)
    with pytest.raises(ImageInvalid, match="locked with a password"):
        list(blocks(tmp_path / "it.zip"))


def test_blocks_of_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ImageInvalid, match="missing.img cannot be read: No such file"):
        survey(tmp_path / "missing.img", tmp_path / "boot")
    with pytest.raises(ImageInvalid, match="cannot be read"):
        list(blocks(tmp_path))


def test_survey_partition_larger_than_the_head_is_copied_in_parts(tmp_path, table):
    """One that begins inside the first blocks and spans several."""
    raw = table["mbr"]((0x0C, 63, 6000)).ljust(63 * 512, b"\0") + bytes(range(256)) * 12000
    (tmp_path / "it").write_bytes(raw)
    survey(tmp_path / "it", tmp_path / "boot")
    assert (tmp_path / "boot").read_bytes() == raw[63 * 512 : 6063 * 512]


def test_survey_root_partition_of_zeros_takes_no_room(tmp_path, table):
    raw = bytearray(table["mbr"]((0x0C, 2048, 2048), (0x83, 4096, 4 * 2048)).ljust(6 << 20, b"\0"))
    raw[5 << 20 : (5 << 20) + 4] = b"here"
    (tmp_path / "it").write_bytes(raw)
    copy = survey(tmp_path / "it", tmp_path / "boot").root_copy
    assert copy.read_bytes() == raw[2 << 20 :]
    assert copy.stat().st_blocks * 512 <= 1 << 20


@pytest.mark.parametrize(
    ("start", "program"), [(b"\x28\xb5\x2f\xfd", "unzstd"), (b"\x04\x22\x4d\x18", "unlz4"), (b"7z\xbc\xaf", "7z x")]
)
def test_survey_packed_in_another_way_names_the_program(tmp_path, start, program):
    (tmp_path / "board.img.x").write_bytes(start + bytes(1000))
    with pytest.raises(ImageInvalid, match=f"unpack it first, with `{program} board.img.x`"):
        survey(tmp_path / "board.img.x", tmp_path / "boot")
