"""Topics: where each kind of message goes, and what a token's bearer may touch.

    mas/4/<federation>/device/<device>/status                    device → all, retained, with a last will
    mas/4/<federation>/device/<device>/event                     device → server, control messages
    mas/4/<federation>/device/<device>/command                   server → device, control messages
    mas/4/<federation>/device/<device>/upload/<digest>/<index>   device → server, runs of chunks
    mas/4/<federation>/device/<device>/download/<digest>/<index> server → device, runs of chunks
    mas/4/<federation>/device/<device>/split_learning/up         device → encoder server, fragments of messages
    mas/4/<federation>/device/<device>/split_learning/down       encoder server → device, fragments of answers

What goes to a device goes to it alone, at its pace: nothing that another device asked for takes room on its line.

The 4 is the protocol's version. A device of another version names another topic in its last will, so the broker refuses
its connection: two versions never meet in a message.
"""

# coverage: every branch

import re
from dataclasses import dataclass
from typing import Literal

from edge_runtime.wire.errors import TopicInvalid
from edge_runtime.wire.names import is_device_id

PROTOCOL = 4
ROOT = f"mas/{PROTOCOL}"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_INDEX = re.compile(r"(0|[1-9][0-9]{0,8})\Z")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A parsed topic."""

    device: str
    kind: Literal["status", "event", "command", "upload", "download", "up", "down"]
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
        """The beginning of all topics of the federation."""
        return f"{ROOT}/{self.federation}"

    def status(self, device: str) -> str:
        """Return the topic of a device's retained status."""
        return f"{self._device(device)}/status"

    def event(self, device: str) -> str:
        """Return the topic of a device's control messages to the server."""
        return f"{self._device(device)}/event"

    def command(self, device: str) -> str:
        """Return the topic of the server's control messages to a device."""
        return f"{self._device(device)}/command"

    def up(self, device: str) -> str:
        """Return the topic of a device's fragments to the encoder server."""
        return f"{self._device(device)}/split_learning/up"

    def down(self, device: str) -> str:
        """Return the topic of the encoder server's fragments to a device."""
        return f"{self._device(device)}/split_learning/down"

    def upload(self, device: str, digest: str, index: int) -> str:
        """Return the topic of a run of chunks from a device that begins with chunk `index`."""
        return f"{self._device(device)}/upload/{_chunk(digest, str(index))}"

    def download(self, device: str, digest: str, index: int) -> str:
        """Return the topic of a run of chunks for a device that begins with chunk `index`."""
        return f"{self._device(device)}/download/{_chunk(digest, str(index))}"

    def to_device(self, device: str) -> tuple[str, ...]:
        """Return the filters for everything that is for a device, which it subscribes to."""
        return self.command(device), self.down(device), f"{self._device(device)}/download/+/+"

    def from_devices(self) -> tuple[str, ...]:
        """Return the filters for everything that devices publish, which the server subscribes to."""
        device = f"{self.root}/device/+"
        return f"{device}/status", f"{device}/event", f"{device}/upload/+/+", f"{device}/split_learning/up"

    def parse(self, topic: str) -> Address:
        """Parse a topic. Raises TopicInvalid if it is not one of this federation's."""
        levels = topic.split("/", 8)
        if levels[:3] == self.root.split("/"):
            match levels[3:]:
                case ["device", device, ("status" | "event" | "command") as kind] if is_device_id(device):
                    return Address(device=device, kind=kind)
                case ["device", device, "split_learning", ("up" | "down") as kind] if is_device_id(device):
                    return Address(device=device, kind=kind)
                case ["device", device, ("upload" | "download") as kind, digest, index] if is_device_id(device):
                    _chunk(digest, index)
                    return Address(device=device, kind=kind, digest=digest, index=int(index))
        raise TopicInvalid(f"{topic[:200]!r} is not a topic of federation {self.federation!r}")

    def _device(self, device: str) -> str:
        if not is_device_id(device):
            raise TopicInvalid(f"{device[:80]!r} cannot name a device")
        return f"{self.root}/device/{device}"


def _chunk(digest: str, index: str) -> str:
    """Return the last two levels of a chunk's topic."""
    if not _DIGEST.match(digest) or not _INDEX.match(index):
        raise TopicInvalid(f"{digest[:80]!r} and {index[:20]!r} do not name a chunk of a blob")
    return f"{digest}/{index}"


def may_publish(federation: str, role: str, name: str, topic: str) -> bool:
    """Return whether a token's bearer, with this role and name in `federation`, may publish to `topic`."""
    try:
        address = Topics(federation).parse(topic)
    except TopicInvalid:
        return False
    from_device = address.kind not in {"command", "down", "download"}
    if role == "server":
        return not from_device
    return role == "device" and from_device and address.device == name


def may_subscribe(federation: str, role: str, name: str, topic_filter: str) -> bool:
    """Return whether a token's bearer may subscribe to `topic_filter`: a device to what is for it."""
    try:
        topics = Topics(federation)
        own = {topics.status(name), *topics.to_device(name)}
    except TopicInvalid:
        return False
    if role == "server":
        return topic_filter.startswith(f"{topics.root}/")
    return role == "device" and topic_filter in own
