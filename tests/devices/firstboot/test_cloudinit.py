import json

from devices.firstboot.cloudinit import instance_id, meta_data, network_config, user_data
from devices.firstboot.settings import board_settings, wifi

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq8m0tqQ0p6zQ7m3w7zZJm4o0n0n0n0n0n0n0n0n0n0 me@laptop"
HASH = "$6$RtSBXEUoFBnMRxkH$vN8H1zyXzGQ5y3S2Ax0Wm1"


def make(**changes):
    return board_settings(**{"device": "Pi_01", "python": "3.13", "reserve_mib": 300, **changes})


def config(settings):
    return json.loads(user_data(settings).partition(b"\n")[2])


def test_user_by_key_alone_has_no_password_and_needs_none():
    user = config(make(ssh_keys=(KEY,)))["users"][0]
    assert user["lock_passwd"] is True
    assert "passwd" not in user
    assert user["sudo"] == "ALL=(ALL) NOPASSWD:ALL"


def test_user_by_password_is_asked_for_it():
    found = config(make(password_hash=HASH))
    assert found["ssh_pwauth"] is True
    assert found["users"][0]["passwd"] == HASH
    assert "sudo" not in found["users"][0]
    assert config(make(password_hash=HASH, ssh_keys=(KEY,)))["ssh_pwauth"] is False


def test_user_data_timezone_only_if_given():
    assert "timezone" not in config(make())
    assert config(make(timezone="Asia/Tokyo"))["timezone"] == "Asia/Tokyo"


def test_network_wired_alone_and_wireless():
    assert set(json.loads(network_config(make()))["network"]) == {"version", "ethernets"}
    found = json.loads(network_config(make(wifi=wifi("x: y", "", "DE", hidden=True))))["network"]["wifis"]["wlan0"]
    assert found["access-points"] == {"x: y": {"hidden": True}}
    assert found["regulatory-domain"] == "DE"


def test_network_a_boot_waits_for_the_one_that_is_meant():
    wired = json.loads(network_config(make()))["network"]["ethernets"]["wired"]
    assert not wired["optional"]
    both = json.loads(network_config(make(wifi=wifi("x", "", "DE"))))["network"]
    assert both["ethernets"]["wired"]["optional"]
    assert "optional" not in both["wifis"]["wlan0"]


def test_meta_data_names_instance_and_host():
    assert json.loads(meta_data(make(), "i-1")) == {
        "instance-id": "i-1",
        "local-hostname": "pi-01",
        "dsmode": "local",
    }


def test_instance_id_changes_with_anything_that_was_decided():
    ids = {
        instance_id(make(), b"token"),
        instance_id(make(), b"another"),
        instance_id(make(timezone="Asia/Tokyo"), b"token"),
        instance_id(make(wifi=wifi("x", "", "DE")), b"token"),
    }
    assert len(ids) == 4
    assert instance_id(make(), b"token") in ids
