import re
import shutil
import subprocess

import pytest

from devices.__main__ import main
from devices.flashing.card import Card
from devices.flashing.flags import HELP

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq8m0tqQ0p6zQ7m3w7zZJm4o0n0n0n0n0n0n0n0n0n0 me@laptop"


@pytest.fixture
def l4t(tmp_path):
    """Linux_for_Tegra as it is unpacked, with as little in it as can be."""
    folder = tmp_path / "Linux_for_Tegra"
    (folder / "rootfs/usr/bin").mkdir(parents=True)
    (folder / "rootfs/etc/systemd/system").mkdir(parents=True)
    (folder / "rootfs/usr/bin/python3.10").touch()
    (folder / "apply_binaries.sh").touch()
    return folder


@pytest.fixture
def words(l4t, agent_toml, wheels, tmp_path):
    (tmp_path / "key.pub").write_text(KEY)
    (tmp_path / "secret").write_text("correct horse\n")

    def make(**changes):
        flags = {
            "board": "orin-nano",
            "device-id": "pi-01",
            "l4t": l4t,
            "agent": agent_toml(),
            "wheels": wheels("3.10") if "wheels" not in changes else None,
            "ssh-key": tmp_path / "key.pub",
            "wifi": "net",
            "wifi-password-file": tmp_path / "secret",
            "wifi-country": "DE",
        }
        flags |= {name.replace("_", "-"): value for name, value in changes.items()}
        return ["jetson", *(str(w) for n, v in flags.items() if v is not None for w in (f"--{n}", v))]

    return make


def test_jetson_without_yes_gives_the_commands_and_writes_nothing(words, l4t, capsys):
    before = sorted(l4t.rglob("*"))
    assert main(words()) == 1
    said = capsys.readouterr().out
    lines = [line.strip() for line in said.splitlines()]
    at = [
        lines.index("sudo ./apply_binaries.sh"),
        lines.index('sudo ./tools/l4t_create_default_user.sh -u mas -p "$PASSWORD" -n pi-01 --accept-license'),
        lines.index(
            "sudo ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 -c "
            "tools/kernel_flash/flash_l4t_t234_nvme.xml -p '-c bootloader/generic/cfg/flash_t234_qspi.xml' --showlogs "
            "--network usb0 jetson-orin-nano-devkit internal"
        ),
    ]
    assert at == sorted(at)
    assert "which were not tried on a board" in said
    assert "secret" not in said
    assert sorted(l4t.rglob("*")) == before


@pytest.mark.process
def test_jetson_places_the_first_boot(words, l4t, capsys):
    assert main([*words(), "--yes"]) == 0
    rootfs = l4t / "rootfs"
    seed = rootfs / "opt/mas-edge-seed"
    assert (seed / "agent.toml").stat().st_mode & 0o777 == 0o600
    assert (seed / "authorized_keys").read_text() == f"{KEY}\n"
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=seed, check=False).returncode == 0
    assert "authorized_keys" in (seed / "SHA256SUMS").read_text()
    unit = rootfs / "etc/systemd/system/mas-edge-install.service"
    assert "ExecStart=/bin/sh -ec 'sh /opt/mas-edge-seed/install.sh; systemctl" in unit.read_text()
    link = rootfs / "etc/systemd/system/multi-user.target.wants/mas-edge-install.service"
    assert str(link.readlink()) == "/etc/systemd/system/mas-edge-install.service"
    network = rootfs / "etc/NetworkManager/system-connections/mas-edge.nmconnection"
    assert network.stat().st_mode & 0o777 == 0o600
    assert "psk=correct\\shorse\n" in network.read_text()
    assert (rootfs / "etc/modprobe.d/mas-edge.conf").read_text() == "options cfg80211 ieee80211_regdom=DE\n"
    script = l4t / "flash-mas-edge.sh"
    assert script.stat().st_mode & 0o777 == 0o755
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    refused = subprocess.run(["sh", script], capture_output=True, text=True, env={}, check=False)
    assert refused.returncode != 0
    assert "PASSWORD" in refused.stderr


def test_jetson_again_replaces_what_was_there(words, l4t, tmp_path):
    assert main([*words(), "--yes"]) == 0
    old = l4t / "rootfs/opt/mas-edge-seed/wheels/old-1.0-py3-none-any.whl"
    old.touch()
    assert main([*words(wheels=tmp_path / "wheels"), "--yes"]) == 0
    assert not old.exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "apply_binaries.sh").unlink(), "is no Linux_for_Tegra folder"),
        (lambda f: shutil.rmtree(f / "rootfs/etc"), "rootfs is empty: unpack the sample root file system"),
        (lambda f: (f / "rootfs/usr/bin/python3.10").unlink(), r"has no python3\.10, which the wheels are for"),
        (lambda f: (f / "rootfs/etc/nv_tegra_release").write_text("# R35 (release), REVISION: 4.1"),
         "is Jetson Linux R35, and Jetson Orin Nano needs R39 or R36"),
    ],
    ids=["folder", "empty", "python", "release"],
)  # fmt: skip
def test_jetson_wrong_folder_is_one_sentence(words, l4t, spoil, said, capsys):
    spoil(l4t)
    assert main([*words(), "--yes"]) == 3
    err = capsys.readouterr().err
    assert re.search(said, err), err
    assert not (l4t / "flash-mas-edge.sh").exists()


def test_jetson_right_release_is_taken(words, l4t):
    (l4t / "rootfs/etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1")
    assert main(words()) == 1


def test_jetson_with_a_python_beside_the_system_s(words, l4t):
    (l4t / "rootfs/usr/bin/python3.10").unlink()
    assert main(words(python_path="/opt/python/bin/python3.10")) == 3
    (l4t / "rootfs/opt/python/bin").mkdir(parents=True)
    (l4t / "rootfs/opt/python/bin/python3.10").touch()
    assert main(words(python_path="/opt/python/bin/python3.10", wheels=l4t.parent / "wheels")) == 1


def test_jetson_of_another_board_is_refused(words, capsys):
    assert main(words(board="rpi5")) == 2
    assert "Raspberry Pi 5 is no Jetson: use `python -m devices flash`" in capsys.readouterr().err


def test_flags_are_those_of_a_card():
    assert {*HELP, "ssh"} == set(Card.__struct_fields__)  # a fleet's address of a board that runs
