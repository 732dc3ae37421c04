"""Who is there, as far as the server knows, without I/O or clock.

Rules
- Whatever a device sends says that it is there. Its Hello says that it may be asked to work. If an earlier process had
  its Hello, it may be asked after PATIENCE_S without another; who never said one, for it takes a signature, never is.
- It is away when its broker says so, or when it was silent for SILENT_S: devices repeat their Hello every few minutes.
  No broker need keep anything: the server calls the roll when it connects.
"""

# coverage: every branch

from collections.abc import Mapping
from dataclasses import dataclass

from edge_runtime.wire.messages import Hello, Progress

PATIENCE_S = 3.0
SILENT_S = 900.0


@dataclass
class DeviceState:
    """A device as the server knows it."""

    online: bool = False
    ready: bool = False
    """True if it may be asked to work: since its Hello, or PATIENCE_S after it came online with a former one."""
    changed_s: float = 0.0
    """When it came online, or was found to be away."""
    heard_s: float = 0.0
    hello: Hello | None = None
    progress: Progress | None = None
    fault: str = ""
    """Why its part in the round that it was asked for last came to nothing; empty where it did not."""


class Presence:
    """All devices that are known, by name."""

    def __init__(self, hellos: Mapping[str, Hello]) -> None:
        self.devices = {name: DeviceState(hello=hello) for name, hello in hellos.items()}

    @property
    def ready(self) -> list[str]:
        """The devices that may be asked to work, in order."""
        return sorted(name for name, device in self.devices.items() if device.ready)

    @property
    def hellos(self) -> dict[str, Hello]:
        """The Hellos of the devices that may be asked to work, in order: each has said one."""
        return {name: hello for name in self.ready if (hello := self.devices[name].hello) is not None}

    def is_online(self, device: str) -> bool:
        """Return whether a device is there."""
        return device in self.devices and self.devices[device].online

    def on_status(self, device: str, *, online: bool, now_s: float) -> None:
        """Take what a device's broker, or the device itself, says of it."""
        known = self._known(device)
        known.heard_s = now_s
        if online != known.online:
            known.online, known.ready, known.changed_s = online, False, now_s

    def on_heard(self, device: str, now_s: float) -> bool:
        """Note that a device has sent something; return whether nobody knew that it is there."""
        is_new = not self.is_online(device)
        self.on_status(device, online=True, now_s=now_s)
        return is_new

    def on_hello(self, device: str, hello: Hello, now_s: float) -> None:
        """Take a device's Hello: it may be asked to work."""
        is_back = self.on_heard(device, now_s)
        known = self._known(device)
        if is_back or known.hello != hello:
            known.progress = None
        known.ready, known.hello = True, hello

    def tick(self, now_s: float) -> list[str]:
        """Return the devices that may be asked from now on by a former Hello; note those that are silent."""
        welcome = []
        for name, device in sorted(self.devices.items()):
            if device.online and now_s - device.heard_s >= SILENT_S:
                self.on_status(name, online=False, now_s=now_s)
            elif device.online and not device.ready and device.hello and now_s - device.changed_s >= PATIENCE_S:
                device.ready = True
                welcome.append(name)
        return welcome

    def _known(self, device: str) -> DeviceState:
        return self.devices.setdefault(device, DeviceState())
