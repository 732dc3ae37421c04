"""One card: the request, the plan that people see, and the writing.

    surveyed = survey(image, scratch / "boot.img", sha256=…)      # reads all of it, and refuses a bad one
    system = system_on(surveyed)                                  # what its root partition holds
    plan = prepare(request, surveyed, system, scratch)            # sets up a copy of the boot partition
    execute(plan, progress)                                       # writes, reads back

Up to `execute` nothing is written but scratch files.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from devices.firstboot.agent import AgentFile
from devices.firstboot.bundle import bundle
from devices.firstboot.settings import BoardSettings
from devices.flashing.copying import ReadBackDiffers, read_back, with_boot_partition, write
from devices.flashing.ext import Ext, ExtUnusable
from devices.flashing.fat import Fat
from devices.flashing.image import Progress, ScratchFull, Survey, blocks
from devices.flashing.kind import KindUnknown, Way, check_wheels, way_of
from devices.flashing.seed import SeededFiles, seed
from devices.flashing.system import InstalledSystem, read_system
from devices.flashing.target import DiskTarget, FileTarget, WriteFailed
from devices.profile import Profile
from devices.wheelhouse import Wheelhouse

Track = Callable[[str, int], AbstractContextManager[Progress]]
"""Shows the progress of a step, by its title and its bytes in all."""


@dataclass(frozen=True, kw_only=True)
class FlashRequest:
    """A request: an image for a board, set up for one device, to one target."""

    profile: Profile
    settings: BoardSettings
    agent: AgentFile
    wheels: Wheelhouse
    target: DiskTarget | FileTarget
    data: Path | None = None
    first_boot: Way | None = None


@dataclass(frozen=True, kw_only=True)
class FlashPlan:
    """A request that can be executed: the image with a boot partition that was set up."""

    request: FlashRequest
    survey: Survey
    system: InstalledSystem
    seeded: SeededFiles
    boot: Path


def system_on(surveyed: Survey) -> InstalledSystem:
    """Return the system on the image's root partition, whose copy is removed. Raises KindUnknown."""
    copy = surveyed.root_copy
    if copy is None:
        raise KindUnknown(f"{surveyed.path} cannot be set up: it has no root partition")
    try:
        system = read_system(Ext(copy))
    except ExtUnusable as exc:
        raise KindUnknown(f"{surveyed.path} cannot be set up: {exc}") from exc
    finally:
        copy.unlink()
    if system is None:
        raise KindUnknown(f"{surveyed.path} cannot be set up: its root partition holds no system (no etc/os-release)")
    return system


def prepare(request: FlashRequest, surveyed: Survey, system: InstalledSystem, scratch: Path) -> FlashPlan:
    """Check the target and the image's system, and set up a copy of the boot partition.

    Raises TargetRefused, FatUnusable, KindUnknown, ImageInvalid, ScratchFull and UsageError.
    """
    request.target.check(surveyed.size_bytes)
    settings, wheels = request.settings, request.wheels
    way = way_of(system, request.first_boot)
    check_wheels(
        system,
        request.profile,
        python=wheels.python,
        architecture=wheels.architecture,
        beside=settings.python_path is not None,
    )
    boot = scratch / f"{settings.device}.boot.img"
    try:
        shutil.copyfile(surveyed.boot_copy, boot)
    except OSError as exc:
        raise ScratchFull(scratch, exc) from exc
    files = bundle(settings, request.agent, wheels, request.data)
    seeded = seed(Fat(boot), way, settings, files, request.agent.content)
    return FlashPlan(request=request, survey=surveyed, system=system, seeded=seeded, boot=boot)


def execute(plan: FlashPlan, track: Track) -> None:
    """Write the image, read it back and compare.

    Raises TargetRefused if nothing was written, WriteFailed if the target is not what it should be, ImageInvalid.
    """
    survey = plan.survey
    target = plan.request.target
    target.check(survey.size_bytes)
    with target.open() as descriptor:
        with track("writing", survey.size_bytes) as progress:
            source = with_boot_partition(blocks(survey.path), survey.boot, plan.boot)
            digest, size_bytes = write(descriptor, source, progress)
        if size_bytes != survey.size_bytes:
            raise WriteFailed(f"{survey.path} has changed since it was checked: {target.state_after_failure()}")
        try:
            with track("reading back", size_bytes) as progress:
                read_back(descriptor, size_bytes, digest, progress)
        except ReadBackDiffers as exc:
            raise WriteFailed(f"{exc}; {target.state_after_failure()}") from exc


def describe(plan: FlashPlan, stated: bool) -> str:
    """Return the plan for people, without secrets. `stated`: the image's SHA-256 was given and is right."""
    request, survey, system, seeded = plan.request, plan.survey, plan.system, plan.seeded
    settings, agent = request.settings, request.agent
    wifi = settings.wifi
    access = ", ".join(
        filter(
            None,
            [
                f"{len(settings.ssh_keys)} SSH key(s)" * bool(settings.ssh_keys),
                "a password" * bool(settings.password_hash),
            ],
        )
    )
    network = (
        "wired"
        if wifi is None
        else f"wired, and Wi-Fi {wifi.ssid!r} ({wifi.country}{'' if wifi.password else ', open'})"
    )
    limit = settings.memory_max_mib
    memory = f"all but {settings.reserve_mib} MiB" if limit is None else f"{limit} MiB"
    released = "" if system.released is None else f", Raspberry Pi OS of {system.released}"
    found = f"{system.title}{released}; {system.architecture}, Python {system.python}"
    wheels = request.wheels
    lines = [
        f"{settings.device}: {request.profile.title}",
        f"  image    {survey.path}, {survey.size_bytes / 1e9:.2f} GB unpacked",
        f"  system   {found}",
        f"  SHA-256  {survey.file_sha256} ({'as stated' if stated else 'not compared: give --sha256'})",
        f"  to       {request.target.describe()}",
        f"  boot     {len(seeded.names)} files, {seeded.size_bytes / 1e6:.1f} MB, set up by {seeded.way}",
        f"  user     {settings.user}, who enters by {access or 'nothing: give --ssh-key to be able to'}",
        f"  network  {network}",
        f"  agent    {agent.device} of {agent.federation} at {agent.url}; of the memory {memory}",
        f"  wheels   {len(wheels.files)} for Python {wheels.python}, {wheels.size_bytes / 1e6:.1f} MB",
    ]
    return "\n".join(lines)
