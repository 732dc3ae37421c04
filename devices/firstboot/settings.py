"""The settings of one board's first boot, checked as they come from the command line or fleet.toml."""

# coverage: every branch

import hashlib
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from devices.cli.run import UsageError

DEVICE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"
"""The names that a device may have; the server has the same rule."""
MIN_MEMORY_MIB = 64
"""The least memory for an agent."""
_HASH = r"^\$[0-9a-z]{1,10}\$[!-9;-~]{8,400}\Z"
_KEY = r"^(ssh|ecdsa|sk)-[!-~]+ [A-Za-z0-9+/=]{40,16000}( [ -~]*)?\Z"
_HOST = r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?\Z"
_HEX_PSK = re.compile(r"[0-9a-fA-F]{64}\Z")
_PASSPHRASE = re.compile(r"[ -~]{8,63}\Z")
_MAX_SSID_BYTES = 32


class Wifi(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Wi-Fi network. `psk` is its key in 64 hexadecimal digits, None for an open one; `country` is by ISO 3166."""

    ssid: str
    country: Annotated[str, Meta(pattern=r"^[A-Z]{2}\Z")]
    psk: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    hidden: bool = False

    def __repr__(self) -> str:
        """Return a text without the key."""
        return f"Wifi(ssid={self.ssid!r}, country={self.country!r}, psk={'***' if self.psk else None})"


class BoardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one board's first boot.

    `memory_max_mib` None: the board's memory less `reserve_mib`. `python_path` is a Python beside the system's, which
    the wheels are for.
    """

    device: Annotated[str, Meta(pattern=DEVICE)]
    python: Annotated[str, Meta(pattern=r"^3\.\d{1,2}\Z")]
    reserve_mib: Annotated[int, Meta(ge=64, le=65536)]
    user: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}\Z")] = "mas"
    ssh_keys: tuple[Annotated[str, Meta(pattern=_KEY)], ...] = ()
    password_hash: Annotated[str, Meta(pattern=_HASH)] | None = None
    wifi: Wifi | None = None
    timezone: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}\Z", max_length=60)] | None = None
    ntp: Annotated[str, Meta(pattern=_HOST)] | None = None
    memory_max_mib: Annotated[int, Meta(ge=MIN_MEMORY_MIB, le=1 << 20)] | None = None
    python_path: Annotated[str, Meta(pattern=r"^/[A-Za-z0-9_./-]+\Z", max_length=200)] | None = None

    @property
    def hostname(self) -> str:
        """The device's name in the form of a host's (RFC 1123)."""
        return re.sub(r"[^a-z0-9-]+", "-", self.device.lower()).strip("-") or "board"

    def __repr__(self) -> str:
        """Return a text without secrets: no hash and no network key."""
        return f"BoardSettings(device={self.device!r}, user={self.user!r}, wifi={self.wifi!r})"


def wifi(ssid: str, password: str, country: str | None, *, hidden: bool = False) -> Wifi:
    """Return a network by its password (8 to 63 characters, or the key's 64 hexadecimal digits; empty: open).

    The key is derived here (PBKDF2-HMAC-SHA1, 4,096 rounds, the name as salt: IEEE 802.11-2020, J.4.1), so the password
    is not on the card. Raises UsageError.
    """
    size_bytes = len(ssid.encode())
    if not 1 <= size_bytes <= _MAX_SSID_BYTES or not ssid.isprintable():
        raise UsageError(f"{ssid[:40]!r} is no Wi-Fi network's name: it has 1 to 32 bytes and no control characters")
    if not country:
        raise UsageError(
            "Wi-Fi stays switched off without the country whose radio rules apply: give --wifi-country, as in "
            "--wifi-country DE"
        )
    if not re.match(r"[A-Z]{2}\Z", country):
        raise UsageError(f"{country[:20]!r} is no country: give its two letters, as in DE, GB or US")
    if not password:
        return Wifi(ssid=ssid, country=country, hidden=hidden)
    if _HEX_PSK.match(password):
        return Wifi(ssid=ssid, country=country, psk=password.lower(), hidden=hidden)
    if not _PASSPHRASE.match(password):
        raise UsageError(f"the password of {ssid!r} must have 8 to 63 plain characters: it has {len(password)}")
    key = hashlib.pbkdf2_hmac("sha1", password.encode("ascii"), ssid.encode(), 4096, 32)
    return Wifi(ssid=ssid, country=country, psk=key.hex(), hidden=hidden)


def board_settings(**values: object) -> BoardSettings:
    """Return the settings, checked. Raises UsageError, which names the wrong one."""
    try:
        return msgspec.convert(values, BoardSettings, strict=True)
    except msgspec.ValidationError as exc:
        where = re.search(r"`\$\.?([^`]*)`", str(exc))
        name = where[1] if where else ""
        if name.startswith("ssh_keys"):
            raise UsageError(
                "that is no public SSH key: give a file such as ~/.ssh/id_ed25519.pub, with a key on each line"
            ) from exc
        if name == "password_hash":
            raise UsageError("that is no password's hash: make one with `openssl passwd -6`") from exc
        raise UsageError(f"{name.replace('_', '-')} cannot be {values.get(name)!r}: {exc}") from exc
