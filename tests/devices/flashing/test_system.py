"""What an image is, read from ext4 file systems that look like those of official images."""

import struct

import pytest
from root_files import program, system

from devices.flashing.ext import Ext, ExtUnusable
from devices.flashing.system import architecture, boot_place, read_system

NO_CLOUD = {"cloud_init": False}
LOOK_ALIKES = {
    "trixie": (
        system(),
        ("Debian GNU/Linux 13 (trixie)", "aarch64", "3.13", "/boot/firmware", "2025-12-04", True),
    ),
    "trixie in 32 bits": (
        system(name="Raspbian GNU/Linux", architecture="armhf"),
        ("Raspbian GNU/Linux 13 (trixie)", "armhf", "3.13", "/boot/firmware", "2025-12-04", True),
    ),
    "the first image of trixie": (
        system(**NO_CLOUD, raspberry_pi="2025-10-01"),
        ("Debian GNU/Linux 13 (trixie)", "aarch64", "3.13", "/boot/firmware", "2025-10-01", False),
    ),
    "bookworm of a year later": (
        system("12 (bookworm)", python="3.11", **NO_CLOUD, raspberry_pi="2026-09-15"),
        ("Debian GNU/Linux 12 (bookworm)", "aarch64", "3.11", "/boot/firmware", "2026-09-15", False),
    ),
    "bullseye of May 2025": (
        system("11 (bullseye)", python="3.9", **NO_CLOUD, raspberry_pi="2025-05-06", boot_place="/boot"),
        ("Debian GNU/Linux 11 (bullseye)", "aarch64", "3.9", "/boot", "2025-05-06", False),
    ),
    "Ubuntu": (
        system("24.04.3 LTS", name="Ubuntu", python="3.12", raspberry_pi=None),
        ("Ubuntu 24.04.3 LTS", "aarch64", "3.12", "/boot/firmware", None, True),
    ),
    "Armbian": (
        system("25.8", name="Armbian", python=None, raspberry_pi=None, **NO_CLOUD),
        ("Armbian 25.8", "aarch64", None, "/boot/firmware", None, False),
    ),
    "cloud-init switched off": (
        system(more={"etc/cloud/cloud-init.disabled": ""}),
        ("Debian GNU/Linux 13 (trixie)", "aarch64", "3.13", "/boot/firmware", "2025-12-04", False),
    ),
}


@pytest.mark.process
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_system_of_a_look_alike(make_root, name):
    files, (title, machine, python, place, released, has_cloud_init) = LOOK_ALIKES[name]
    found = read_system(Ext(make_root(files)))
    assert (found.title, found.architecture, found.python) == (title, machine, python)
    assert (found.boot_place, found.released, found.has_cloud_init) == (place, released, has_cloud_init)


@pytest.mark.process
@pytest.mark.parametrize(
    ("release", "title"),
    [
        ("ID=alpine\n", "alpine"),
        ("NAME='Home Board'\nVERSION=1\n", "Home Board"),
        ("VERSION=1\n", "a system without a name"),
    ],
)
def test_system_by_whatever_names_it(make_root, release, title):
    found = read_system(Ext(make_root({"etc/os-release": release})))
    assert (found.title, found.architecture, found.python, found.boot_place) == (title, None, None, None)


@pytest.mark.process
def test_root_that_holds_no_system(make_root):
    ext = Ext(make_root({"readme": "x", "loop": "->loop", "etc/os-release": "->../loop", "folder/file": "x"}))
    assert read_system(ext) is None
    assert ext.read("folder") is None
    assert not ext.exists("bad name; or worse")
    assert ext.link("readme") is None


@pytest.mark.process
def test_root_that_is_damaged_or_none_is_refused(make_root, tmp_path):
    path = make_root(system())
    data = bytearray(path.read_bytes())
    data[1024 : 1024 + 56] = bytes(b ^ 0x5A for b in data[1024 : 1024 + 56])
    path.write_bytes(data)
    with pytest.raises(ExtUnusable, match="root partition is damaged"):
        read_system(Ext(path))
    path.write_bytes(b"squashfs".ljust(4096, b"\0"))
    with pytest.raises(ExtUnusable, match="has no ext4 file system"):
        Ext(path)


def test_ext_without_its_program_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "it"
    path.write_bytes(bytes(1080) + b"\x53\xef" + bytes(100))
    monkeypatch.setattr("shutil.which", lambda *_args, **_more: None)
    with pytest.raises(ExtUnusable, match="install the package e2fsprogs"):
        Ext(path)


def test_architecture_of_programs():
    assert architecture(program("x86_64")) == "x86_64"
    assert architecture(b"\x7fELF" + bytes([2, 2]).ljust(14, b"\0") + struct.pack(">H", 0x15)) == "processor 0x15"
    assert architecture(b"#!/bin/sh\nexec something else\n") is None
    assert architecture(b"\x7fELF") is None


def test_boot_place_leaves_comments_out():
    assert (
        boot_place("# LABEL=x /boot vfat\n#LABEL=x /boot vfat d 0 0\n\nLABEL=y /boot/firmware vfat d 0 1\n")
        == "/boot/firmware"
    )
    assert boot_place("LABEL=root / ext4 defaults 0 1\n") is None
