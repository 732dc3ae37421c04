import json
import subprocess

import pytest

from devices.firstboot.cloudinit import instance_id, meta_data, network_config, user_data
from devices.firstboot.install_unit import UNIT, WANTED
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


@pytest.fixture
def boot(tmp_path):
    """Runs what cloud-init runs at each boot, in another root folder."""
    ((*words, script),) = config(make())["bootcmd"]
    return lambda: subprocess.run(
        [*words, script], env={"MAS_EDGE_ROOT": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True
    )


@pytest.mark.process
def test_each_boot_until_the_agent_is_installed_is_a_first_one(boot, tmp_path):
    done = tmp_path / "var/lib/cloud/instances/i-1/sem/config_users_groups"
    done.parent.mkdir(parents=True)
    (tmp_path / "var/lib/cloud/instance").symlink_to("instances/i-1")
    (tmp_path / "etc").mkdir()
    boot()
    unit, link = tmp_path / UNIT, tmp_path / WANTED
    assert "ExecStart=/bin/sh -ec 'sh /boot/firmware/mas-edge/install.sh; systemctl" in unit.read_text()
    assert str(link.readlink()) == f"/{UNIT}"
    # Cut off: what was begun once is begun again, and locks of programs that are gone do not hold it back.
    done.touch()
    (tmp_path / "etc/passwd.lock").touch()
    boot()
    assert not done.exists()
    assert not (tmp_path / "etc/passwd.lock").exists()
    # It has succeeded, which takes the link away: nothing is done again.
    done.touch()
    link.unlink()
    boot()
    assert done.exists()
    assert not link.is_symlink()


@pytest.mark.process
def test_placing_that_was_cut_off_is_done_again(boot, tmp_path):
    unit, link = tmp_path / UNIT, tmp_path / WANTED
    link.parent.mkdir(parents=True)
    link.symlink_to(f"/{UNIT}")
    unit.with_name(f"{unit.name}.new").write_text("[Unit]\nDescrip")
    boot()
    assert unit.read_text().endswith("WantedBy=multi-user.target\n")


def test_network_wired_alone_and_wireless():
    assert set(json.loads(network_config(make()))["network"]) == {"version", "ethernets"}
    found = json.loads(network_config(make(wifi=wifi("x: y", "", "DE", hidden=True))))["network"]["wifis"]["wlan0"]
    assert found["access-points"] == {"x: y": {"hidden": True}}
    assert found["regulatory-domain"] == "DE"
    assert found["dhcp6"]


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
