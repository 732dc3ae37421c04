"""The mechanism that sets up an image's first boot, by the system that is on it.

cloud-init reads its NoCloud files from the boot partition: Raspberry Pi OS since trixie, Ubuntu for the Raspberry Pi.
Raspberry Pi OS without cloud-init runs firstrun.sh, which systemd starts by words of the kernel's command line; what
Raspberry Pi Imager writes for its rpi-preseed is not needed then. Other systems, such as Armbian and DietPi, have
mechanisms of their own inside their root file system: they are started as their makers say, and set up by SSH.
(boards' release notes; pi-gen stage2/04-cloud-init; systemd.kernel-command-line(7))
"""

# coverage: every branch

from typing import Literal

from devices.flashing.system import PLACE, InstalledSystem
from devices.profile import Profile

Way = Literal["cloud-init", "firstrun"]
WAYS: tuple[Way, ...] = ("cloud-init", "firstrun")
_INSTEAD = "start it as its maker says, and set it up by `python -m devices provision`"
_BITS = {"armhf": "32-bit ", "i686": "32-bit "}


class KindUnknown(ValueError):
    """The image cannot be set up, or not for these wheels; the sentence states what was found and what would fit."""


def way_of(system: InstalledSystem, wanted: Way | None = None) -> Way:
    """Return the mechanism of the image's first boot; `wanted` is what a person asks for. Raises KindUnknown."""
    if system.boot_place not in {None, PLACE}:
        raise KindUnknown(
            f"{system.title} mounts its boot partition at {system.boot_place}, and what is put there is looked for at "
            f"{PLACE}: take a newer image"
        )
    fitting = [
        way for way, fits in (("cloud-init", system.has_cloud_init), ("firstrun", system.is_raspberry_pi_os)) if fits
    ]
    for way in WAYS:
        if way in fitting and wanted in {None, way}:
            return way
    if fitting:
        raise KindUnknown(f"{system.title} on this image is not set up by {wanted}: {' or '.join(fitting)} fits")
    raise KindUnknown(
        f"{system.title} on this image has neither cloud-init nor Raspberry Pi OS's first boot: {_INSTEAD}"
    )


def check_wheels(system: InstalledSystem, profile: Profile, *, python: str, architecture: str, beside: bool) -> None:
    """Raise KindUnknown where wheels are for another processor or Python than the system's.

    `beside`: the wheels are for a Python that the board has beside the system's.
    """
    if system.architecture not in {None, architecture}:
        raise KindUnknown(
            f"{system.title} on this image is {_BITS.get(str(system.architecture), '')}{system.architecture}, and the "
            f"wheels are for {architecture}: take the image for {architecture}"
        )
    if beside or system.python == python:
        return
    if system.python is None:
        raise KindUnknown(f"{system.title} on this image has no Python 3: take an image that has one")
    if tuple(map(int, system.python.split("."))) < (3, 10):
        raise KindUnknown(
            f"{system.title} on this image has Python {system.python}, and 3.10 is needed: take a newer image, or "
            "put a newer Python beside it and name it with --python-path"
        )
    known = [f"--system {each.name}" for each in profile.systems if each.python == system.python]
    raise KindUnknown(
        f"the wheels are for Python {python}, and {system.title} on this image has {system.python}: make them with "
        f"`python -m devices wheelhouse --board {profile.name} {(*known, f'--python {system.python}')[0]}`"
    )
