"""The settings of one board's first boot, checked as they come from the command line or fleet.toml."""

# coverage: every branch

import difflib
import hashlib
import ipaddress
import re
import zoneinfo
from typing import Annotated

import msgspec
from msgspec import Meta

from devices.cli.run import UsageError
from devices.firstboot.countries import COUNTRIES

DEVICE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"
"""The names that a device may have; the server has the same rule."""
MIN_MEMORY_MIB = 64
"""The least memory for an agent."""
_HASH = r"^\$[0-9a-z]{1,10}\$[!-9;-~]{8,400}\Z"
_KEY = r"^(ssh|ecdsa|sk)-[!-~]+ [A-Za-z0-9+/=]{40,16000}( [ -~]*)?\Z"
_HOST = r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?\Z"
_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}\Z")
_PASSPHRASE = re.compile(r"[ -~]{8,63}\Z")
_MAX_SSID_BYTES = 32
_ACCOUNTS = """
    root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc nobody messagebus sshd avahi
    polkitd mas-edge rpi-first-boot-wizard usbmux dnsmasq pulse rtkit colord geoclue statd syslog uuidd tcpdump tss
    landscape fwupd-refresh pollinate ntp mosquitto docker adm sudo video dialout netdev i2c gpio
"""
_SYSTEM_ACCOUNTS = frozenset(_ACCOUNTS.split())
"""Accounts and groups of the systems that are set up here, which a person's user cannot be."""


class Wifi(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Wi-Fi network. `password` is its passphrase or its key in 64 hexadecimal digits, None for an open one."""

    ssid: str
    country: Annotated[str, Meta(pattern=r"^[A-Z]{2}\Z")]
    password: Annotated[str, Meta(pattern=r"^([ -~]{8,63}|[0-9a-f]{64})\Z")] | None = None
    hidden: bool = False

    def __repr__(self) -> str:
        """Return a text without the key."""
        return f"Wifi(ssid={self.ssid!r}, country={self.country!r}, password={'***' if self.password else None})"


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
        """The board's name on its network."""
        return host_name(self.device)

    def __repr__(self) -> str:
        """Return a text without secrets: no hash and no network key."""
        return f"BoardSettings(device={self.device!r}, user={self.user!r}, wifi={self.wifi!r})"


def host_name(device: str) -> str:
    """Return a device's name in the form of a host's (RFC 1123)."""
    return re.sub(r"[^a-z0-9-]+", "-", device.lower()).strip("-") or "board"


def wifi(ssid: str, password: str, country: str | None, *, hidden: bool = False, derive_key: bool = False) -> Wifi:
    """Return a network by its password (8 to 63 characters, or the key's 64 hexadecimal digits; empty: open).

    With `derive_key` the card holds the key and not the password (PBKDF2-HMAC-SHA1, 4,096 rounds, the name as salt:
    IEEE 802.11-2020, J.4.1). It is good for WPA2 alone: routers with WPA3 want the password (raspberrypi/linux#7634).
    Raises UsageError.
    """
    size_bytes = len(ssid.encode())
    if not 1 <= size_bytes <= _MAX_SSID_BYTES or not ssid.isprintable():
        raise UsageError(f"{ssid[:40]!r} is no Wi-Fi network's name: it has 1 to 32 bytes and no control characters")
    if not country:
        raise UsageError(
            "Wi-Fi stays switched off without the country whose radio rules apply: give --wifi-country, as in "
            "--wifi-country DE"
        )
    if country not in COUNTRIES:
        meant = "GB for the United Kingdom" if country.upper() == "UK" else "its two letters, as in DE, GB or US"
        raise UsageError(f"{country[:20]!r} is no country by ISO 3166: give {meant}")
    if not password:
        return Wifi(ssid=ssid, country=country, hidden=hidden)
    if _HEX_KEY.match(password):
        return Wifi(ssid=ssid, country=country, password=password.lower(), hidden=hidden)
    if not _PASSPHRASE.match(password):
        raise UsageError(f"the password of {ssid!r} must have 8 to 63 plain characters: it has {len(password)}")
    if derive_key:
        password = hashlib.pbkdf2_hmac("sha1", password.encode("ascii"), ssid.encode(), 4096, 32).hex()
    return Wifi(ssid=ssid, country=country, password=password, hidden=hidden)


def board_settings(**values: object) -> BoardSettings:
    """Return the settings, checked. Raises UsageError, which names the wrong one."""
    try:
        settings = msgspec.convert(values, BoardSettings, strict=True)
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
    _check_user(settings.user)
    if settings.timezone is not None:
        _check_timezone(settings.timezone)
    return settings


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is the machine's own, which on a board is the board."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _check_user(user: str) -> None:
    if user in _SYSTEM_ACCOUNTS or user.startswith("systemd-"):
        raise UsageError(
            f"user cannot be {user!r}: the system has that account for itself; give a person's, such as mas"
        )


def _check_timezone(zone: str) -> None:
    known = zoneinfo.available_timezones()
    if known and zone not in known:
        close = difflib.get_close_matches(zone, known, 1)
        raise UsageError(
            f"timezone cannot be {zone!r}: there is no such zone{f'; did you mean {close[0]}?' if close else ''}"
        )
