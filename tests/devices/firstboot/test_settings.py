import re

import pytest

from devices.cli.run import UsageError
from devices.firstboot.settings import board_settings, is_loopback, wifi

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq8m0tqQ0p6zQ7m3w7zZJm4o0n0n0n0n0n0n0n0n0n0 me@laptop"
HASH = "$6$RtSBXEUoFBnMRxkH$vN8H1zyXzGQ5y3S2Ax0Wm1"
GIVEN = {"device": "pi-01", "python": "3.13", "reserve_mib": 300}


def test_settle_takes_what_is_right():
    settings = board_settings(**GIVEN, ssh_keys=(KEY,), password_hash=HASH, timezone="Europe/Berlin", ntp="10.0.0.1")
    assert settings.user == "mas"
    assert HASH not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("device", "../x", "device cannot be '../x'"),
        ("device", "a\n", "device cannot be"),
        ("user", "root;x", "user cannot be"),
        ("ssh_keys", ("ssh-ed25519 short",), "no public SSH key"),
        ("ssh_keys", (f"{KEY}\nssh-rsa x",), "no public SSH key"),
        ("password_hash", "hunter2", "no password's hash: make one with `openssl passwd -6`"),
        ("password_hash", f"{HASH}:x", "no password's hash"),
        ("user", "root", "user cannot be 'root': the system has that account for itself"),
        ("user", "mas-edge", "the system has that account for itself"),
        ("user", "systemd-network", "the system has that account for itself"),
        ("timezone", "/etc/passwd", "timezone cannot be"),
        ("timezone", "Europe/Berln", "there is no such zone; did you mean Europe/Berlin?"),
        ("timezone", "Q", "there is no such zone"),
        ("ntp", "a b", "ntp cannot be"),
        ("memory_max_mib", 3, "memory-max-mib cannot be 3"),
        ("python", "2.7", "python cannot be"),
    ],
)
def test_settle_names_what_is_wrong(name, value, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        board_settings(**GIVEN | {name: value})


@pytest.mark.parametrize(
    ("device", "host"), [("pi-01", "pi-01"), ("Pi_01.kitchen", "pi-01-kitchen"), ("0", "0"), ("A._-", "a")]
)
def test_hostname_is_one_that_a_host_may_have(device, host):
    assert board_settings(**GIVEN | {"device": device}).hostname == host


def test_timezone_is_any_where_the_computer_knows_none(monkeypatch):
    monkeypatch.setattr("zoneinfo.available_timezones", set)
    assert board_settings(**GIVEN, timezone="Europe/Berln").timezone == "Europe/Berln"


@pytest.mark.parametrize(
    ("host", "own"), [("server.lan", False), ("LOCALHOST.", True), ("a.localhost", True), ("::", True)]
)
def test_loopback_is_the_board_itself(host, own):
    assert is_loopback(host) is own


def test_wifi_password_is_kept_as_routers_with_wpa3_want_it():
    found = wifi("IEEE", "correct horse", "GB")
    assert found.password == "correct horse"
    assert "horse" not in repr(found)


def test_wifi_key_is_that_of_the_standard():
    """IEEE 802.11-2020, J.4.2, test case 1."""
    found = wifi("IEEE", "password", "US", derive_key=True)
    assert found.password == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert "f42c" not in repr(found)


def test_wifi_takes_a_key_and_an_open_network():
    assert wifi("n", "AB" * 32, "DE").password == "ab" * 32
    assert wifi("n", "", "DE", hidden=True).password is None


@pytest.mark.parametrize(
    ("ssid", "password", "country", "said"),
    [
        ("", "password", "DE", "1 to 32 bytes"),
        ("é" * 17, "password", "DE", "1 to 32 bytes"),
        ("a\nb", "password", "DE", "no control characters"),
        ("n", "password", None, "give --wifi-country"),
        ("n", "password", "", "give --wifi-country"),
        ("n", "password", "de", "two letters"),
        ("n", "password", "XX", "is no country by ISO 3166"),
        ("n", "password", "UK", "give GB for the United Kingdom"),
        ("n", "short", "DE", "it has 5"),
        ("n", "x" * 64, "DE", "it has 64"),
        ("n", "pässword", "DE", "plain characters"),
    ],
)
def test_wifi_refuses(ssid, password, country, said):
    with pytest.raises(UsageError, match=said):
        wifi(ssid, password, country)
