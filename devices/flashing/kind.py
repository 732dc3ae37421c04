"""The kind of an image, by the files on its boot partition: the mechanism that sets up its first boot.

Raspberry Pi OS since trixie (images of October 2025 and later) reads cloud-init's NoCloud files from the partition, as
do Ubuntu's images for the Raspberry Pi; bookworm runs firstrun.sh when cmdline.txt names it. (boards' release notes;
pi-gen stage2/04-cloud-init)
"""

# coverage: every branch

import re
from dataclasses import dataclass
from typing import Literal

Way = Literal["cloud-init", "firstrun"]
WAYS: tuple[Way, ...] = ("cloud-init", "firstrun")
_REFERENCE = re.compile(rb"Raspberry Pi reference (\d{4}-\d{2}-\d{2})")
_TRIXIE = "2025-10-01"
_BOOKWORM = "2023-10-10"


class KindUnknown(ValueError):
    """The first boot of the image cannot be set up; the sentence states what was found."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An image: the mechanism of its first boot, its date if it states one, and its system's name in the profiles."""

    way: Way
    released: str | None
    system: str | None


def kind_of(names: frozenset[str], issue: bytes | None, wanted: Way | None = None) -> Kind:
    """Return the kind of an image. `names` are files in its boot partition's root, `issue` is the content of issue.txt.

    `wanted` overrides the mechanism. Raises KindUnknown.
    """
    match = None if issue is None else _REFERENCE.search(issue)
    released = None if match is None else match[1].decode()
    if released is not None and released < _BOOKWORM and wanted is None:
        raise KindUnknown(
            f"this is Raspberry Pi OS of {released}, whose Python is older than 3.10: take an image of {_BOOKWORM} or "
            "later"
        )
    system = None if released is None else "trixie" if released >= _TRIXIE else "bookworm"
    if wanted is not None:
        return Kind(way=wanted, released=released, system=system)
    if {"user-data", "meta-data"} <= names or system == "trixie":
        return Kind(way="cloud-init", released=released, system=system)
    if system == "bookworm" and "cmdline.txt" in names:
        return Kind(way="firstrun", released=released, system=system)
    raise KindUnknown(
        "the boot partition has neither cloud-init's user-data and meta-data nor Raspberry Pi OS's issue.txt: state "
        f"the mechanism of its first boot with --first-boot {' or '.join(WAYS)}"
    )
