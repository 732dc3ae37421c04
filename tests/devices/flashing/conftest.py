import shutil
import struct
import subprocess
import uuid
import zlib

import pytest
from root_files import system

MIB = 1 << 20
CMDLINE = (
    "console=serial0,115200 console=tty1 root=PARTUUID=d89b055c-02 rootfstype=ext4 fsck.repair=yes rootwait quiet\n"
)
TRIXIE = {
    "cmdline.txt": CMDLINE,
    "config.txt": "arm_64bit=1\n",
    "issue.txt": "Raspberry Pi reference 2025-12-04\nGenerated using pi-gen\n",
    "meta-data": "dsmode: local\ninstance_id: rpios-image\n",
    "user-data": "#cloud-config\n",
    "network-config": "network:\n  version: 2\n",
}


def needs(*programs):
    missing = [name for name in programs if shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)} (packages mtools, dosfstools and e2fsprogs)")


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def mbr(*entries):
    """A partition table: (kind, first sector, sectors) each."""
    table = b"".join(struct.pack("<B3xB3xII", 0x80 * (n == 0), *entry) for n, entry in enumerate(entries))
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def gpt(*entries):
    """Protective MBR, header and entries: (kind, first sector, sectors) each."""
    kinds = {"efi": "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "linux": "0fc63daf-8483-4772-8e79-3d69d8477de4"}
    packed = b"".join(
        struct.pack("<16s16sQQQ72s", uuid.UUID(kinds[k]).bytes_le, uuid.uuid4().bytes_le, a, a + n - 1, 0, b"")
        for k, a, n in entries
    ).ljust(128 * 128, b"\0")
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 0, uuid.uuid4().bytes_le, 2, 128, 128,
        zlib.crc32(packed),
    )  # fmt: skip
    return mbr((0xEE, 1, 0xFFFFFFFF)) + header.ljust(512, b"\0") + packed


@pytest.fixture
def table():
    """Writes partition tables."""
    return {"mbr": mbr, "gpt": gpt}


@pytest.fixture
def make_fat(tmp_path):
    """A FAT file system in a file."""
    needs("mkfs.vfat", "mcopy")

    def make(files, *, mib=40, name="fat.img"):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        run("/usr/sbin/mkfs.vfat", "-C", "-n", "bootfs", "-F", "32" if mib >= 34 else "16", str(path), str(mib * 1024))
        for file, text in files.items():
            source = tmp_path / "source"
            source.write_text(text)
            if "/" in file:
                run("mmd", "-i", str(path), f"::/{file.rpartition('/')[0]}")
            run("mcopy", "-i", str(path), str(source), f"::/{file}")
        return path

    return make


@pytest.fixture
def make_root(tmp_path):
    """An ext4 file system in a file, without root."""
    needs("mke2fs", "debugfs")

    def make(files, *, mib=2, name="root.img"):
        folder, path = tmp_path / f"{name}.files", tmp_path / name
        for file, content in files.items():
            place = folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str) and content.startswith("->"):
                place.symlink_to(content[2:])
            else:
                place.write_bytes(content if isinstance(content, bytes) else content.encode())
        folder.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        options = ["-q", "-t", "ext4", "-O", "^has_journal", "-d", str(folder)]
        run("/usr/sbin/mke2fs", *options, str(path), f"{mib}M")
        shutil.rmtree(folder)
        return path

    return make


@pytest.fixture
def make_image(tmp_path, make_fat, make_root):
    """A disk image as Raspberry Pi OS has it: FAT at 4 MiB, then the root file system with what `root` says."""

    def make(files=None, *, root=None, mib=12, kind="mbr", name="board.img"):
        fat = make_fat(TRIXIE if files is None else files, mib=mib)
        held = root if isinstance(root, bytes) else make_root(system() if root is None else root).read_bytes()
        start, sectors, rest = 8192, mib * 2048, len(held) // 512
        entries = [(0x0C, start, sectors), (0x83, start + sectors, rest)]
        head = mbr(*entries) if kind == "mbr" else gpt(("efi", *entries[0][1:]), ("linux", *entries[1][1:]))
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(head.ljust(start * 512, b"\0"))
            file.write(fat.read_bytes())
            file.write(held)
        fat.unlink()
        return path

    return make


@pytest.fixture
def fat_of(tmp_path):
    """The boot partition of an image that make_image made, as a file."""

    def cut(image, *, mib=12):
        path = tmp_path / f"{image.name}.fat"
        with image.open("rb") as file:
            file.seek(8192 * 512)
            path.write_bytes(file.read(mib * MIB))
        return path

    return cut


@pytest.fixture
def sound():
    """Holds a FAT file system to fsck.fat, which knows nothing of us."""

    def check(path):
        needs("fsck.fat")
        run("/usr/sbin/fsck.fat", "-n", str(path))

    return check
