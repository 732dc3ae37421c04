"""What a root file system has that tells what it is, as official images have it."""

import struct

ELF = {"aarch64": (2, 0xB7), "armhf": (1, 0x28), "x86_64": (2, 0x3E)}


def program(architecture):
    """The beginning of a program for a processor."""
    bits, machine = ELF[architecture]
    return b"\x7fELF" + bytes([bits, 1, 1]).ljust(12, b"\0") + struct.pack("<HH", 3, machine) + bytes(100)


def system(
    version="13 (trixie)", *, name="Debian GNU/Linux", python="3.13", architecture="aarch64", cloud_init=True,
    raspberry_pi="2025-12-04", boot_place="/boot/firmware", more=(),
):  # fmt: skip
    """A root file system's files, as far as they tell what it is; a value that begins with "->" is a link."""
    files = {
        "usr/lib/os-release": f'PRETTY_NAME="{name} {version}"\nNAME="{name}"\n# a comment\n',
        "etc/os-release": "->../usr/lib/os-release",
        "bin": "->usr/bin",
        "usr/bin/env": program(architecture),
        "etc/fstab": f"proc /proc proc defaults 0 0\nPARTUUID=d89b055c-01 {boot_place} vfat defaults 0 2\n",
        **dict(more),
    }
    if python is not None:
        files |= {"usr/bin/python3": f"->python{python}", f"usr/bin/python{python}": program(architecture)}
    if cloud_init:
        files["usr/bin/cloud-init"] = "#!/usr/bin/python3\n"
    if raspberry_pi is not None:
        files["etc/rpi-issue"] = f"Raspberry Pi reference {raspberry_pi}\nGenerated using pi-gen, stage2\n"
    return files
