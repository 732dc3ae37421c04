"""The blobs that devices have sent: each device's in a folder of its own, apart from what the server serves.

A device can name any digest. Whatever it names is looked for, written and deleted in its own folder alone, so that
nothing of the server's or of another device's can be reached by a message.

root/DEVICE/DIGEST            complete and verified
root/DEVICE/DIGEST.part …     on its way
"""

# coverage: every branch

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.names import is_device_id


class DeviceUploads:
    """The folders of all devices. A folder is made when its device first sends something."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.expected: dict[str, str] = {}
        """The digest of what is on its way from a device: it may be complete before the server has heard of it."""

    def of(self, device: str) -> BlobStore:
        """Return a device's folder. Raises BlobInvalid for a name that no device has; OSError as the file system."""
        if not is_device_id(device):
            raise BlobInvalid(f"{device[:80]!r} cannot name a device")
        return BlobStore(self.root / device)

    def has(self, device: str, digest: str) -> bool:
        """Return whether a device's blob is here, complete."""
        return is_device_id(device) and (self.root / device / digest).is_file()

    def keep(self, kept: Mapping[str, Collection[str]], *, partial: bool) -> None:
        """Delete all that is not among `kept`, digests by device; with `partial` also what is on its way."""
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            digests = kept.get(folder.name, ())
            if partial and not digests:
                shutil.rmtree(folder, ignore_errors=True)  # a run that is being written now stays until the next time
                continue
            store = BlobStore(folder)
            for digest in list(store.digests()):
                is_coming = digest not in store or self.expected.get(folder.name) == digest
                if digest not in digests and (partial or not is_coming):
                    store.discard(digest)
