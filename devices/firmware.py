"""Questions to a Raspberry Pi's firmware, as `vcgencmd` puts them.

The mailbox /dev/vcio is used directly where it may be opened: one system call instead of a process for each question.
The buffer of a question consists of words of 32 bits: its size, 0 (a request), the tag GET_GENCMD_RESULT, the room for
text, 0, 0 (the answer's code), the text, 0 (no more tags). (raspberrypi/utils, vcgencmd.c)
"""

import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

Ask = Callable[[str], str]
"""Returns the firmware's answer to a command such as `pmic_read_adc`. Raises FirmwareSilent."""

_TAG = 0x00030080
_TEXT_BYTES = 4096
_HEADER = struct.Struct("=6I")
_PROPERTY = 0xC0000000 | struct.calcsize("P") << 16 | 100 << 8  # _IOWR(100, 0, char *)
_PROGRAMS = ("usr/bin/vcgencmd", "opt/vc/bin/vcgencmd")
_TIMEOUT_S = 0.8


class FirmwareSilent(Exception):
    """There is no such firmware, or it does not answer; the message states why."""


def open_firmware(root: Path = Path("/")) -> Ask:
    """Open the firmware and return what asks it. Raises FirmwareSilent without one."""
    for name in ("dev/vcio_gencmd", "dev/vcio"):
        ask = _open_mailbox(root / name)
        if ask is not None:
            return ask
    for name in _PROGRAMS:
        if (root / name).is_file():
            return _program(root / name)
    raise FirmwareSilent("this board has no Raspberry Pi firmware (neither /dev/vcio nor vcgencmd)")


def question(command: str) -> bytearray:
    """Return the mailbox's buffer with a command. Raises ValueError for one that is too long."""
    text = command.encode("ascii")
    if len(text) >= _TEXT_BYTES:
        raise ValueError("a firmware command is too long")
    size = _HEADER.size + _TEXT_BYTES + 4
    return bytearray(_HEADER.pack(size, 0, _TAG, _TEXT_BYTES, 0, 0) + text.ljust(_TEXT_BYTES + 4, b"\0"))


def answer(buffer: bytes | bytearray) -> str:
    """Return the text in the mailbox's buffer after the call."""
    return bytes(buffer[_HEADER.size : _HEADER.size + _TEXT_BYTES]).split(b"\0", 1)[0].decode("utf-8", "replace")


def _open_mailbox(device: Path) -> Ask | None:
    """Open the mailbox; None if the device is none, may not be opened or does not answer."""
    try:
        if not stat.S_ISCHR(device.stat().st_mode):
            return None
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    ask = _mailbox(descriptor)
    try:
        if ask("version"):
            return ask
    except FirmwareSilent:
        pass
    os.close(descriptor)
    return None


def _mailbox(descriptor: int) -> Ask:
    def ask(command: str) -> str:
        buffer = question(command)
        try:
            fcntl.ioctl(descriptor, _PROPERTY, buffer)
        except OSError as exc:
            raise FirmwareSilent(f"the firmware does not answer {command}: {exc.strerror}") from exc
        return answer(buffer)

    return ask


def _program(path: Path) -> Ask:
    def ask(command: str) -> str:
        try:
            done = subprocess.run([path, *command.split()], capture_output=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as exc:
            raise FirmwareSilent(f"vcgencmd {command} took over {_TIMEOUT_S} s") from exc
        except OSError as exc:
            raise FirmwareSilent(f"{path} cannot be run: {exc.strerror}") from exc
        text = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0:
            lines = (done.stderr.decode("utf-8", "replace") or text).strip().splitlines()
            raise FirmwareSilent(
                f"vcgencmd {command} failed ({lines[0][:200] if lines else done.returncode}); "
                "the user must be in the group video"
            )
        return text

    return ask
