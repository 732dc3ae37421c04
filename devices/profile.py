"""Profiles of kinds of boards: one TOML file each in `devices/profiles`, every fact with its source.

    [sources]
    product = "Raspberry Pi 5 product brief"

    [facts]
    cores = { value = [4], source = "product" }

A fact that no document states is left out: it is None, and `show` prints it as not stated. Limits and sizes that differ
between the models of one name are lists.
"""

# coverage: every branch

from importlib import resources
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")
Text = Annotated[str, Meta(min_length=1, max_length=300)]
Watts = Annotated[float, Meta(gt=0, lt=1000)]
Celsius = Annotated[float, Meta(gt=0, lt=150)]
Version = Annotated[str, Meta(pattern=r"^\d{1,2}\.\d{1,2}\Z")]
FirstBoot = Literal["cloud-init", "firstrun", "rootfs"]
_NAME = r"^[a-z0-9][a-z0-9.-]{0,31}\Z"


class ProfileInvalid(ValueError):
    """There is no such board, or its file is wrong; the sentence names the board."""


class Fact(msgspec.Struct, Generic[T], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value and the key of its source in the file's table `sources`."""

    value: T
    source: str


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The facts of a board. None: no document states it.

    `compatible` are patterns (fnmatch) of the device tree's names. `meters` are sources as `devices.meters` names them,
    the best first. `active_w` is the typical power of the bare board at work, `supply_w` what its supply must give,
    `modes_w` the power modes of a Jetson. From `throttle_c` on the processor is slowed down; `limit_c` is never passed.
    """

    reserve_mib: Fact[Annotated[int, Meta(ge=64, le=65536)]]
    providers: Fact[Annotated[tuple[Text, ...], Meta(min_length=1)]]
    engines: Fact[Annotated[tuple[Literal["portable", "ort_training"], ...], Meta(min_length=1)]]
    meters: Fact[Annotated[tuple[Text, ...], Meta(min_length=1)]]
    compatible: Fact[Annotated[tuple[Text, ...], Meta(min_length=1)]] | None = None
    processor: Fact[Text] | None = None
    cores: Fact[Annotated[tuple[Annotated[int, Meta(ge=1, le=1024)], ...], Meta(min_length=1)]] | None = None
    memory_mib: Fact[Annotated[tuple[Annotated[int, Meta(ge=128)], ...], Meta(min_length=1)]] | None = None
    rails: Fact[Annotated[tuple[Text, ...], Meta(min_length=1)]] | None = None
    active_w: Fact[Watts] | None = None
    supply_w: Fact[Watts] | None = None
    modes_w: Fact[Annotated[tuple[Watts, ...], Meta(min_length=1)]] | None = None
    throttle_c: Fact[Celsius] | None = None
    limit_c: Fact[Celsius] | None = None


class System(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operating system for the board: its Python, its C library, and the mechanism that sets up its first boot.

    `releases` are those of Jetson Linux that it is.
    """

    name: Annotated[str, Meta(pattern=_NAME)]
    title: Text
    python: Version
    glibc: Version
    first_boot: FirstBoot
    source: str
    releases: tuple[Annotated[int, Meta(ge=32, le=99)], ...] = ()


class Flash(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """NVIDIA's command that flashes the developer kit, in the folder of Jetson Linux."""

    command: Annotated[tuple[Text, ...], Meta(min_length=1)]
    source: str


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of board. `sources` maps the keys in its facts to documents."""

    title: Text
    family: Literal["raspberrypi", "jetson", "generic"]
    architecture: Literal["aarch64", "x86_64"]
    sources: dict[str, Text]
    facts: Facts
    systems: Annotated[tuple[System, ...], Meta(min_length=1)]
    flash: Flash | None = None
    name: str = ""

    def system(self, name: str | None = None) -> System:
        """Return the system of that name, or the board's newest. Raises ProfileInvalid."""
        for system in self.systems:
            if name in {None, system.name}:
                return system
        known = ", ".join(system.name for system in self.systems)
        raise ProfileInvalid(f"{self.name} has no system {name!r}: known are {known}")


def names() -> tuple[str, ...]:
    """Return the name of every board that has a file, in order."""
    files = (entry.name for entry in resources.files("devices.profiles").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


def load(name: str) -> Profile:
    """Return a board's profile. Raises ProfileInvalid."""
    if name not in names():
        raise ProfileInvalid(f"there is no board {name[:80]!r}: known are {', '.join(names())}")
    return decode(name, resources.files("devices.profiles").joinpath(f"{name}.toml").read_bytes())


def load_all() -> tuple[Profile, ...]:
    """Return every board's profile, in the order of their names."""
    return tuple(load(name) for name in names())


def decode(name: str, data: bytes) -> Profile:
    """Decode a profile's file. Raises ProfileInvalid, also for a fact whose source is not in `sources`."""
    try:
        profile = msgspec.toml.decode(data, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ProfileInvalid(f"the profile of {name} cannot be used: {exc}") from exc
    facts = [(field, getattr(profile.facts, field)) for field in Facts.__struct_fields__]
    named = [(field, fact.source) for field, fact in facts if fact is not None]
    named += [(f"system {system.name}", system.source) for system in profile.systems]
    if profile.flash is not None:
        named.append(("flash", profile.flash.source))
    for field, source in named:
        if source not in profile.sources:
            raise ProfileInvalid(
                f"the profile of {name} cannot be used: {field} names a source {source!r} without an entry"
            )
    return msgspec.structs.replace(profile, name=name)
