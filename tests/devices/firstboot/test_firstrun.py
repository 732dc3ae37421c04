import shutil
import subprocess

import pytest

from devices.firstboot.firstrun import connection, script
from devices.firstboot.install_unit import UNIT, WANTED
from devices.firstboot.settings import board_settings, wifi

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq8m0tqQ0p6zQ7m3w7zZJm4o0n0n0n0n0n0n0n0n0n0 it's mine"
HASH = "$6$RtSBXEUoFBnMRxkH$vN8H1zyXzGQ5y3S2Ax0Wm1"


def make(**changes):
    return board_settings(**{"device": "pi-01", "python": "3.11", "reserve_mib": 300, **changes})


FULL = {"ssh_keys": (KEY,), "wifi": wifi("it's; $HOME", "correct horse", "DE"), "timezone": "Europe/Berlin"}


@pytest.mark.process
@pytest.mark.parametrize("changes", [{}, FULL, {"password_hash": HASH}])
def test_script_is_one_that_a_shell_reads(changes):
    text = script(make(**changes))
    assert subprocess.run(["sh", "-n"], input=text, check=False).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-S", "warning", "-"], input=text, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode()
    assert text.endswith(b"exit 0\n")


@pytest.mark.process
def test_script_goes_away_and_takes_its_words_from_the_command_line(tmp_path):
    text = script(make()).decode()
    assert text.endswith("/boot/firmware/cmdline.txt\nsync\nrm -f /boot/firmware/firstrun.sh\nexit 0\n")
    line = next(line for line in text.splitlines() if "systemd" in line and line.startswith("sed"))
    path = tmp_path / "cmdline.txt"
    path.write_text("a systemd.run=/x systemd.run_success_action=reboot systemd.unit=kernel-command-line.target b\n")
    subprocess.run(["sh", "-c", line.replace("/boot/firmware/cmdline.txt", str(path))], check=True)
    assert path.read_text() == "a b\n"


@pytest.mark.process
def test_script_quotes_what_was_given(tmp_path):
    """The line that writes the network, run: what comes out is what NetworkManager is to read."""
    text = script(make(**FULL)).decode()
    begin = text.index("umask 077;")
    end = text.index("umask 022", begin)
    out = tmp_path / "connection"
    command = text[begin:end].replace("/etc/NetworkManager/system-connections/mas-edge.nmconnection", str(out))
    subprocess.run(["sh", "-c", command], check=True)
    assert out.read_text() == connection(FULL["wifi"]) + "\n"
    assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.process
def test_script_places_what_installs_the_agent_and_installs_nothing_itself(tmp_path):
    text = script(make()).decode()
    begin, end = text.index("root=\n"), text.index("sed -i 's| systemd")
    subprocess.run(["sh", "-ec", text[begin:end].replace("root=", f"root={tmp_path}")], check=True)
    assert "/boot/firmware/mas-edge/install.sh" in (tmp_path / UNIT).read_text()
    assert (tmp_path / WANTED).is_symlink()
    assert "install.sh" not in text[:begin]


def test_connection_names_the_network_by_its_bytes():
    text = connection(wifi("aé;", "", "DE", hidden=True))
    assert "ssid=97;195;169;59;" in text.splitlines()
    assert "hidden=true" in text.splitlines()
    assert "psk" not in text


def test_connection_writes_a_password_as_its_reader_takes_it_apart():
    """GLib reads backslashes as the beginning of an escape, and drops spaces at the ends of a value."""
    lines = connection(wifi("n", r" pass\word; #1 ", "DE")).splitlines()
    assert r"psk=\spass\\word;\s#1\s" in lines
    assert "powersave=2" in lines


def test_script_password_or_key():
    by_key, by_password = script(make(**FULL)).decode(), script(make(password_hash=HASH)).decode()
    assert "userconf mas '*'" in by_key
    assert "NOPASSWD" in by_key
    assert HASH in by_password
    assert "NOPASSWD" not in by_password
