"""Topics: where each kind of message goes, and what a token's bearer may touch.

    mas/1/<federation>/device/<device>/status          device → all, retained, with a last will
    mas/1/<federation>/device/<device>/event           device → server, control messages
    mas/1/<federation>/device/<device>/command         server → device, control messages
    mas/1/<federation>/device/<device>/blob/<digest>/<index>   device → server, chunks
    mas/1/<federation>/device/<device>/exchange/up     device → server, pieces of messages for the general model's host
    mas/1/<federation>/device/<device>/exchange/down   server → device, pieces of its answers
    mas/1/<federation>/blob/<digest>/<index>           server → every device that asked, chunks

The 1 is the protocol's version.
"""

# coverage: every branch

import re
from dataclasses import dataclass
from typing import Literal

from edge_runtime.wire.errors import TopicInvalid
from edge_runtime.wire.names import is_device_id

ROOT = "mas/1"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_INDEX = re.compile(r"(0|[1-9][0-9]{0,8})\Z")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A topic, taken apart. `device` is None for what the server sends to all."""

    device: str | None
    kind: Literal["status", "event", "command", "blob", "up", "down"]
    digest: str | None = None
    index: int | None = None


@dataclass(frozen=True)
class Topics:
    """The topics of one federation. Every method raises TopicInvalid for a name that may not be in a topic."""

    federation: str

    def __post_init__(self) -> None:
        if not is_device_id(self.federation):
            raise TopicInvalid(f"{self.federation!r} cannot name a federation")

    @property
    def root(self) -> str:
        """What all topics of the federation begin with."""
        return f"{ROOT}/{self.federation}"

    def status(self, device: str) -> str:
        """A device's retained status."""
        return f"{self._device(device)}/status"

    def event(self, device: str) -> str:
        """What a device says to the server."""
        return f"{self._device(device)}/event"

    def command(self, device: str) -> str:
        """What the server says to a device."""
        return f"{self._device(device)}/command"

    def up(self, device: str) -> str:
        """What a device says to the host of the general model."""
        return f"{self._device(device)}/exchange/up"

    def down(self, device: str) -> str:
        """What the host of the general model says to a device."""
        return f"{self._device(device)}/exchange/down"

    def upload(self, device: str, digest: str, index: int) -> str:
        """A chunk from a device."""
        return f"{self._device(device)}/blob/{_chunk(digest, str(index))}"

    def download(self, digest: str, index: int) -> str:
        """A chunk for every device that asked."""
        return f"{self.root}/blob/{_chunk(digest, str(index))}"

    def downloads(self, digest: str) -> str:
        """The filter for all chunks of one blob."""
        return f"{self.root}/blob/{_chunk(digest, '0').removesuffix('0')}+"

    def from_devices(self) -> tuple[str, ...]:
        """The filters of all that devices publish."""
        device = f"{self.root}/device/+"
        return f"{device}/status", f"{device}/event", f"{device}/blob/+/+", f"{device}/exchange/up"

    def parse(self, topic: str) -> Address:
        """Take a topic apart. Raises TopicInvalid if it is not one of this federation's."""
        levels = topic.split("/", 8)
        if levels[:3] == self.root.split("/"):
            match levels[3:]:
                case ["device", device, ("status" | "event" | "command") as kind] if is_device_id(device):
                    return Address(device=device, kind=kind)
                case ["device", device, "exchange", ("up" | "down") as kind] if is_device_id(device):
                    return Address(device=device, kind=kind)
                case ["device", device, "blob", digest, index] if is_device_id(device):
                    _chunk(digest, index)
                    return Address(device=device, kind="blob", digest=digest, index=int(index))
                case ["blob", digest, index]:
                    _chunk(digest, index)
                    return Address(device=None, kind="blob", digest=digest, index=int(index))
        raise TopicInvalid(f"{topic[:200]!r} is not a topic of federation {self.federation!r}")

    def _device(self, device: str) -> str:
        if not is_device_id(device):
            raise TopicInvalid(f"{device[:80]!r} cannot name a device")
        return f"{self.root}/device/{device}"


def _chunk(digest: str, index: str) -> str:
    """The last two levels of a chunk's topic."""
    if not _DIGEST.match(digest) or not _INDEX.match(index):
        raise TopicInvalid(f"{digest[:80]!r} and {index[:20]!r} do not name a chunk of a blob")
    return f"{digest}/{index}"


def may_publish(federation: str, role: str, name: str, topic: str) -> bool:
    """Whether the bearer of a token for `federation` with this role and name may publish to `topic`."""
    try:
        address = Topics(federation).parse(topic)
    except TopicInvalid:
        return False
    from_device = address.device is not None and address.kind not in {"command", "down"}
    if role == "server":
        return not from_device
    return role == "device" and from_device and address.device == name


def may_subscribe(federation: str, role: str, name: str, topic_filter: str) -> bool:
    """Whether the bearer of a token may subscribe to `topic_filter`: a device to its own topics and to blobs."""
    try:
        topics = Topics(federation)
        own = {topics.command(name), topics.status(name), topics.down(name)}
    except TopicInvalid:
        return False
    if role == "server":
        return topic_filter.startswith(f"{topics.root}/")
    if role != "device":
        return False
    blob = re.match(re.escape(topics.root) + r"/blob/[0-9a-f]{64}/(\+|[0-9]{1,9})\Z", topic_filter)
    return blob is not None or topic_filter in own
