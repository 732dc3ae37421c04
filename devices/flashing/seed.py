"""The files of a first boot, put onto the copy of an image's boot partition before the image is written."""

import re
from dataclasses import dataclass

from devices.firstboot import cloudinit, firstrun
from devices.firstboot.bundle import FOLDER, Files
from devices.firstboot.cmdline import CommandLineInvalid, edit
from devices.firstboot.settings import BoardSettings
from devices.flashing.fat import Fat
from devices.flashing.image import ImageInvalid
from devices.flashing.kind import Way

_CONFIG = "config.txt"
_PREFIX = re.compile(r"^os_prefix=([A-Za-z0-9_.-]+/)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class SeededFiles:
    """The files that were put onto the partition: their names, and their bytes in all."""

    way: Way
    names: tuple[str, ...]
    size_bytes: int


def command_line_name(fat: Fat) -> str | None:
    """Return the file of the kernel's command line, which Ubuntu from 25.10 on keeps in the folder `current`.

    None without such a file. (Raspberry Pi documentation, config.txt: os_prefix)
    """
    config = fat.read(_CONFIG).decode("utf-8", "replace") if fat.exists(_CONFIG) else ""
    prefix = _PREFIX.search(config)
    names = [f"{prefix[1]}cmdline.txt"] if prefix is not None else []
    return next((name for name in (*names, "cmdline.txt") if fat.exists(name)), None)


def seed(fat: Fat, way: Way, settings: BoardSettings, files: Files, token: bytes) -> SeededFiles:
    """Put a first boot's files onto the partition. Raises FatUnusable and ImageInvalid.

    `token` is the content of agent.toml.
    """
    country = None if settings.wifi is None else settings.wifi.country
    name = command_line_name(fat)
    own: Files = {f"{FOLDER}/{name}": data for name, data in files.items()}
    try:
        if way == "cloud-init":
            instance = cloudinit.instance_id(settings, token)
            own["meta-data"] = cloudinit.meta_data(settings, instance)
            own["user-data"] = cloudinit.user_data(settings)
            own["network-config"] = cloudinit.network_config(settings)
            if name is not None:
                own[name] = edit(fat.read(name), instance=instance, country=country)
        else:
            if name is None:
                raise ImageInvalid("the boot partition has no cmdline.txt, which would start firstrun.sh")
            own["firstrun.sh"] = firstrun.script(settings)
            own[name] = edit(fat.read(name), firstrun=True, country=country)
    except CommandLineInvalid as exc:
        raise ImageInvalid(str(exc)) from exc
    fat.write(own)
    size_bytes = sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in own.values())
    return SeededFiles(way=way, names=tuple(own), size_bytes=size_bytes)
