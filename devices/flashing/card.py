"""The entries of a card on the command line or in fleet.toml, and the request to flash that they make.

fleet.toml, whose paths are relative to it; a device's entry overrides the defaults:

[defaults]
board = "rpi5"
image = "raspios.img.xz"
wheels = "wheels/rpi5"
enrol = "runs/server"          # the server's state: each device gets a token; or `agent` in each device's entry
server = "mqtts://server.lan:8883"
to = "/dev/sda"

[[device]]
device = "pi-01"

[[device]]
device = "pi-02"
board = "rpi4"
to = "pi-02.img"
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from devices.cli.run import UsageError
from devices.firstboot import agent as agents
from devices.firstboot.agent import AgentFile
from devices.firstboot.settings import MIN_MEMORY_MIB, BoardSettings, Wifi, board_settings, host_name, wifi
from devices.flashing.job import FlashRequest
from devices.flashing.kind import Way
from devices.flashing.target import open_target
from devices.profile import Profile, load
from devices.wheelhouse import Wheelhouse
from devices.wheelhouse import read as read_wheels

MAX_FLEET_BYTES = 1 << 20
MAX_SECRET_BYTES = 4096
PATHS = ("image", "wheels", "agent", "enrol", "ca", "data", "to", "ssh_key", "password_hash_file", "wifi_password_file")
"""The entries that are paths."""
_PLAIN = ("user", "timezone", "ntp", "memory_max_mib", "python_path")

Enrol = Callable[[str, Path, "Card"], None]
"""Writes a device's agent.toml into a file, as the server with the state folder `Card.enrol`."""

Ask = Callable[[str], str]
"""Asks a person for a secret."""


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The entries of one card. None: not given."""

    device: str | None = None
    board: str | None = None
    image: str | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")] | None = None
    to: str | None = None
    ssh: str | None = None
    server: str | None = None
    agent: str | None = None
    enrol: str | None = None
    ca: str | None = None
    wheels: str | None = None
    data: str | None = None
    user: str | None = None
    ssh_key: str | None = None
    password_hash_file: str | None = None
    wifi: str | None = None
    wifi_password_file: str | None = None
    wifi_country: str | None = None
    wifi_hidden: bool | None = None
    wifi_derive_key: bool | None = None
    timezone: str | None = None
    ntp: str | None = None
    memory_budget: str | None = None
    memory_max_mib: int | None = None
    python_path: str | None = None
    first_boot: Way | None = None


class _Fleet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """fleet.toml."""

    device: Annotated[tuple[Card, ...], Meta(min_length=1, max_length=10_000)]
    defaults: Card = msgspec.field(default_factory=Card)


def overlay(above: Card, below: Card) -> Card:
    """Return the card `below` with the entries that `above` gives."""
    pairs = {name: getattr(above, name) for name in Card.__struct_fields__}
    return msgspec.structs.replace(below, **{name: value for name, value in pairs.items() if value is not None})


def read_fleet(path: Path) -> tuple[Card, ...]:
    """Return the cards of a fleet's file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FLEET_BYTES + 1)
        fleet = msgspec.toml.decode(data, type=_Fleet)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} cannot be used: {exc}") from exc
    cards = [overlay(_beside(card, path.parent), _beside(fleet.defaults, path.parent)) for card in fleet.device]
    names = [card.device for card in cards]
    if None in names:
        raise UsageError(f'{path}: each [[device]] needs its name, as in device = "pi-01"')
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise UsageError(f"{path} names {', '.join(twice)} twice: each device has a token of its own")
    hosts: dict[str, str] = {}
    for name in map(str, names):
        if (other := hosts.setdefault(host_name(name), name)) != name:
            raise UsageError(f"{path}: {other} and {name} would both be the host {host_name(name)}: rename one")
    return tuple(cards)


@dataclass(frozen=True, kw_only=True)
class BoardSetup:
    """The setup of a board, whether by a card, in a Jetson's root file system, or over SSH."""

    profile: Profile
    settings: BoardSettings
    agent: AgentFile
    wheels: Wheelhouse
    data: Path | None


def board_setup(card: Card, scratch: Path, enrol: Enrol, ask: Ask | None, needed: tuple[str, ...]) -> BoardSetup:
    """Check the entries but image and target, and return the setup. `ask` asks a person for a password.

    Raises UsageError, ProfileInvalid and WheelhouseInvalid, and the exceptions of `enrol`.
    """
    for name in needed:
        if getattr(card, name) is None:
            raise UsageError(f"{card.device or 'the board'} needs --{name.replace('device', 'device-id')}")
    profile = load(str(card.board))
    wheels = read_wheels(Path(str(card.wheels)))
    if wheels.architecture != profile.architecture:
        raise UsageError(f"the wheels in {wheels.folder} are for {wheels.architecture}, not for {profile.title}")
    settings = board_settings(
        device=card.device,
        python=wheels.python,
        reserve_mib=profile.facts.reserve_mib.value,
        ssh_keys=_keys(card.ssh_key),
        password_hash=None if card.password_hash_file is None else _secret(card.password_hash_file),
        wifi=_wifi(card, ask),
        **{name: value for name in _PLAIN if (value := getattr(card, name)) is not None},
    )
    agent = agent_of(card, scratch, enrol)
    if card.memory_budget is not None:
        agent = agents.with_memory_budget(agent, card.memory_budget)
    settings = _limited(settings, agent, profile)
    data = None if card.data is None else Path(card.data)
    return BoardSetup(profile=profile, settings=settings, agent=agent, wheels=wheels, data=data)


def flash_request(card: Card, scratch: Path, enrol: Enrol, ask: Ask | None = None) -> FlashRequest:
    """Return the request to flash a card. Raises as `board_setup` does, and TargetRefused."""
    setup = board_setup(card, scratch, enrol, ask, ("device", "board", "image", "wheels", "to"))
    image, target = Path(str(card.image)).expanduser(), Path(str(card.to))
    if target.resolve() == image.resolve():
        raise UsageError(f"{target} is the image itself, which would be overwritten: give another target")
    if setup.profile.family == "jetson":
        raise UsageError(f"{setup.profile.title} is not set up by a card: use `python -m devices jetson`")
    return FlashRequest(
        profile=setup.profile,
        settings=setup.settings,
        agent=setup.agent,
        wheels=setup.wheels,
        target=open_target(target),
        data=setup.data,
        first_boot=card.first_boot,
    )


def agent_of(card: Card, scratch: Path, enrol: Enrol) -> AgentFile:
    """Return the device's agent.toml: the file given, or a new one by `enrol`. Raises UsageError."""
    if (card.agent is None) == (card.enrol is None):
        raise UsageError(
            f"{card.device} needs a token: give --agent with the file that `python -m broker_server enrol` wrote, or "
            "--enrol with the server's state folder"
        )
    if card.agent is not None:
        return agents.read(Path(card.agent), device=card.device, server=card.server)
    folder = scratch / f"{card.device}.agent"
    folder.mkdir(mode=0o700)
    if card.ca is not None:
        (folder / agents.CA_NAME).write_bytes(_bytes(card.ca, agents.MAX_CA_BYTES))
    enrol(str(card.device), folder / "agent.toml", card)
    return agents.read(folder / "agent.toml", device=card.device, server=card.server)


def _limited(settings: BoardSettings, agent: AgentFile, profile: Profile) -> BoardSettings:
    """Set the limit of the service's memory to the agent's budget where none is given. Raises UsageError."""
    needed_mib, given_mib = agent.memory_max_mib, settings.memory_max_mib
    wanted_mib, sizes = max(needed_mib or 0, given_mib or 0), profile.facts.memory_mib
    if sizes is not None and wanted_mib > (left_mib := max(sizes.value) - settings.reserve_mib):
        raise UsageError(
            f"{settings.device} cannot have {wanted_mib} MiB for its agent: of the {max(sizes.value)} MiB of the "
            f"largest {profile.title}, {left_mib} MiB are left when {settings.reserve_mib} MiB are kept for the system"
        )
    if needed_mib is None:
        return settings
    if given_mib is None:
        return msgspec.structs.replace(settings, memory_max_mib=max(needed_mib, MIN_MEMORY_MIB))
    if given_mib < needed_mib:
        raise UsageError(
            f"--memory-max-mib {given_mib} is too little for the memory budget of {settings.device}: its service needs "
            f"{needed_mib} MiB"
        )
    return settings


def _beside(card: Card, folder: Path) -> Card:
    """Return the card of a file in `folder` with its paths made absolute to that folder."""
    paths = {name: value for name in PATHS if (value := getattr(card, name)) is not None}
    return msgspec.structs.replace(
        card, **{name: str(folder / Path(value).expanduser()) for name, value in paths.items()}
    )


def _wifi(card: Card, ask: Ask | None) -> Wifi | None:
    if card.wifi is None:
        return None
    if card.wifi_country is None:
        return wifi(card.wifi, "", None)  # raises with what to do, before a password is asked for
    if card.wifi_password_file is not None:
        password = _secret(card.wifi_password_file)
    elif ask is not None:
        password = ask(f"password of the Wi-Fi network {card.wifi} (empty: an open network): ")
    else:
        raise UsageError(
            f"the password of {card.wifi!r} is needed: give --wifi-password-file (an empty file for an open network)"
        )
    return wifi(
        card.wifi,
        password,
        card.wifi_country,
        hidden=bool(card.wifi_hidden),
        derive_key=bool(card.wifi_derive_key),
    )


def _keys(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    lines = [line.strip() for line in _bytes(path, MAX_SECRET_BYTES * 16).decode("utf-8", "replace").splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or any(re.search("PRIVATE KEY", key) for key in keys):
        raise UsageError(f"{path} holds no public SSH key: give the file that ends in .pub")
    return keys


def _secret(path: str) -> str:
    """Return a file's only line. Raises UsageError for more lines."""
    lines = _bytes(path, MAX_SECRET_BYTES).decode("utf-8", "replace").splitlines()
    if len(lines) > 1:
        raise UsageError(f"{path} has {len(lines)} lines: one was expected")
    return lines[0] if lines else ""


def _bytes(path: str, limit: int) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > limit:
        raise UsageError(f"{path} is over {limit} bytes: it is something else")
    return data
