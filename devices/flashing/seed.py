"""The files of a first boot, put onto the copy of an image's boot partition before the image is written."""

from dataclasses import dataclass

from devices.firstboot import cloudinit, firstrun
from devices.firstboot.bundle import FOLDER, Files
from devices.firstboot.cmdline import CommandLineInvalid, edit
from devices.firstboot.settings import BoardSettings
from devices.flashing.fat import Fat, FatUnusable
from devices.flashing.image import ImageInvalid
from devices.flashing.kind import Kind, Way, kind_of

_LOOKED_FOR = ("user-data", "meta-data", "cmdline.txt", "issue.txt")
_CMDLINE = "cmdline.txt"


@dataclass(frozen=True, kw_only=True)
class SeededFiles:
    """The files that were put onto the partition: their names, and their bytes in all."""

    kind: Kind
    names: tuple[str, ...]
    size_bytes: int


def look(fat: Fat, wanted: Way | None = None) -> Kind:
    """Return the kind of the image. Raises KindUnknown and FatUnusable."""
    names = frozenset(name for name in _LOOKED_FOR if fat.exists(name))
    return kind_of(names, fat.read("issue.txt") if "issue.txt" in names else None, wanted)


def seed(fat: Fat, kind: Kind, settings: BoardSettings, files: Files, token: bytes) -> SeededFiles:
    """Put a first boot's files onto the partition. Raises FatUnusable and ImageInvalid.

    `token` is the content of agent.toml.
    """
    country = None if settings.wifi is None else settings.wifi.country
    line = fat.read(_CMDLINE) if fat.exists(_CMDLINE) else None
    own: Files = {f"{FOLDER}/{name}": data for name, data in files.items()}
    try:
        if kind.way == "cloud-init":
            instance = cloudinit.instance_id(settings, token)
            own["meta-data"] = cloudinit.meta_data(settings, instance)
            own["user-data"] = cloudinit.user_data(settings)
            own["network-config"] = cloudinit.network_config(settings)
            if line is not None:
                own[_CMDLINE] = edit(line, instance=instance, country=country)
        else:
            if line is None:
                raise ImageInvalid("the boot partition has no cmdline.txt, which would start firstrun.sh")
            own["firstrun.sh"] = firstrun.script(settings)
            own[_CMDLINE] = edit(line, firstrun=True, country=country)
    except CommandLineInvalid as exc:
        raise ImageInvalid(str(exc)) from exc
    fat.write(own)
    size_bytes = sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in own.values())
    return SeededFiles(kind=kind, names=tuple(own), size_bytes=size_bytes)


__all__ = ["FatUnusable", "SeededFiles", "look", "seed"]
