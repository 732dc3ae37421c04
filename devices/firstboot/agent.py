"""agent.toml, as `python -m broker_server enrol` writes it: a device's name, server, token and the server's key."""

# coverage: every branch

import re
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from devices.cli.run import UsageError
from devices.cli.values import parse_size
from devices.firstboot.settings import DEVICE, is_loopback

MAX_BYTES = 64 * 1024
MAX_CA_BYTES = 1 << 20
CA_NAME = "ca.pem"
SPARE_MIB = 32
"""The memory of the service beyond the agent's budget: the kernel counts sockets and files, too."""
_URL = re.compile(r"mqtts?://(\[[^/\s@]+\]|[^/\s@:]+)(?::\d+)?\Z")


class _Entries(msgspec.Struct, frozen=True):
    """The entries of the file that are used here; the agent reads all of it."""

    device: Annotated[str, Meta(pattern=DEVICE)]
    federation: str
    url: str
    token: Annotated[str, Meta(min_length=1)]
    server_key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    data: str
    state: str
    ca_file: str | None = None
    memory_budget: str | None = None


class AgentFile(msgspec.Struct, frozen=True, kw_only=True):
    """The checked content of the file, with the certificates that it names."""

    device: str
    federation: str
    url: str
    content: bytes
    ca: bytes | None = None
    memory_budget_bytes: int | None = None

    @property
    def memory_max_mib(self) -> int | None:
        """The limit of the service's memory that fits the agent's budget; None without one."""
        return None if self.memory_budget_bytes is None else -(-self.memory_budget_bytes // (1 << 20)) + SPARE_MIB

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"AgentFile(device={self.device!r}, federation={self.federation!r}, url={self.url!r})"


def read(path: Path, *, device: str | None = None, server: str | None = None) -> AgentFile:
    """Read the file. Raises UsageError, also where it is for another device or server than the ones given."""
    content = _bytes(path, MAX_BYTES)
    try:
        entries = msgspec.toml.decode(content, type=_Entries)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(
            f"{path} is no agent's configuration ({exc}): write one with "
            f"`python -m broker_server enrol {device or 'NAME'} --out {path}`"
        ) from exc
    if device is not None and entries.device != device:
        raise UsageError(f"{path} is for the device {entries.device}, not for {device}: each has a token of its own")
    match = _URL.match(entries.url)
    if match is None:
        raise UsageError(f"{path}: {entries.url!r} is no broker's URL: write mqtt://host:port or mqtts://host:port")
    if is_loopback(match[1]):
        raise UsageError(
            f"{path}: {entries.url} is on a board the board itself: enrol {entries.device} with the server's name or "
            "address on the network, --url mqtts://HOST:8883"
        )
    if server is not None and entries.url != server:
        raise UsageError(
            f"{path} is for the server {entries.url}, not {server}: enrol {entries.device} with --url {server}"
        )
    if (entries.data, entries.state) != ("data", "state"):
        raise UsageError(f"{path}: data and state lie beside it on a board: enrol {entries.device} without --data")
    if entries.ca_file not in {None, CA_NAME}:
        raise UsageError(
            f"{path}: the certificates are {CA_NAME} on a board: enrol {entries.device} with --ca-file {CA_NAME}"
        )
    ca = None if entries.ca_file is None else _bytes(path.parent / CA_NAME, MAX_CA_BYTES)
    budget_bytes = None if entries.memory_budget is None else _bytes_of(entries.memory_budget, f"{path}: memory_budget")
    return AgentFile(
        device=entries.device,
        federation=entries.federation,
        url=entries.url,
        content=content,
        ca=ca,
        memory_budget_bytes=budget_bytes,
    )


def with_memory_budget(agent: AgentFile, size: str) -> AgentFile:
    """Return the file with a memory budget. Raises UsageError for a wrong size, and where it has another already."""
    budget_bytes = _bytes_of(size, "memory-budget")
    if agent.memory_budget_bytes is not None:
        if agent.memory_budget_bytes != budget_bytes:
            raise UsageError(
                f"agent.toml of {agent.device} has another memory budget, of {agent.memory_budget_bytes} bytes: leave "
                "out --memory-budget"
            )
        return agent
    content = f'memory_budget = "{size}"\n'.encode() + agent.content  # before any table of the file's
    return msgspec.structs.replace(agent, content=content, memory_budget_bytes=budget_bytes)


def _bytes_of(text: str, name: str) -> int:
    try:
        return parse_size(text[:40])
    except ValueError as exc:
        raise UsageError(f"{name}: {exc}") from exc


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > limit:
        raise UsageError(f"{path} is over {limit} bytes: it is something else")
    return data
