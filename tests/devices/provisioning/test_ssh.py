"""Setting up a board over a real sshd."""

import platform
import re
import shutil
import sys
from pathlib import Path

import pytest

from devices.__main__ import main
from devices.provisioning.ssh import HostUnusable, SshHost, look, send

PYTHON = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture
def words(sshd, agent_toml, wheels, tmp_path):
    board = {"x86_64": "x86-64", "aarch64": "aarch64"}.get(platform.machine())
    if board is None:
        pytest.skip(f"no profile for {platform.machine()}")

    def make(**changes):
        flags = {
            "board": board,
            "device-id": "pi-01",
            "agent": agent_toml(),
            "wheels": changes.pop("wheels", None) or wheels(PYTHON, platform.machine()),
            "ssh": "127.0.0.1",
            "ssh-config": sshd / "config",
        }
        flags |= {name.replace("_", "-"): value for name, value in changes.items()}
        return ["provision", *(str(w) for n, v in flags.items() if v is not None for w in (f"--{n}", v))]

    return make


def left_over():
    return set(Path("/tmp").glob("tmp.*"))


def test_provision_without_yes_looks_and_leaves_nothing(words, sshd, capsys):
    before = left_over()
    assert main(words()) == 1
    out = capsys.readouterr().out
    assert f"at 127.0.0.1, {platform.machine()}, Python {PYTHON}\n" in out
    assert out.endswith("nothing was changed there: the same command with --yes sets it up\n")
    assert not (sshd / "root").exists()
    assert left_over() == before


def test_provision_sends_the_folder_and_runs_its_script(words, sshd, capsys):
    """The wheels are empty ones, so installing them is where it ends; all that comes before has worked."""
    before = left_over()
    assert main([*words(), "--yes"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: 127.0.0.1: ")
    assert "pip" in err
    assert (sshd / "root/opt/mas-edge.new/bin/python").exists()
    assert left_over() == before
    shutil.rmtree(sshd / "root")


def test_send_puts_files_with_their_modes(sshd, tmp_path):
    host = SshHost(name="127.0.0.1", config=sshd / "config")
    seen = look(host, PYTHON, None)
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 10_000)
    send(host, seen.folder, {"agent.toml": b"token", "wheels/a.whl": big})
    folder = Path(seen.folder)
    assert (folder / "wheels/a.whl").read_bytes() == big.read_bytes()
    assert (folder / "agent.toml").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(folder)


def test_send_into_nowhere_is_one_sentence(sshd):
    host = SshHost(name="127.0.0.1", config=sshd / "config")
    with pytest.raises(HostUnusable, match="could not be sent to 127.0.0.1: tar: .*"):
        send(host, "/nowhere/at/all", {"a": bytes(5_000_000)})


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"ssh": "-oProxyCommand=x"}, 2, ""),
        ({"ssh": "a b"}, 3, "'a b' is no host"),
        ({"port": 1}, 3, "127.0.0.1: .*(refused|closed)"),
        ({"python-path": "/nowhere/python3"}, 1, ""),
        ({"python-path": "relative"}, 2, "python-path cannot be 'relative'"),
        ({"board": None}, 2, "pi-01 needs --board"),
    ],
)
def test_provision_wrong_input_is_one_sentence(words, changes, code, said, capsys):
    command = words(**{name.replace("-", "_"): value for name, value in changes.items()})
    try:
        assert main(command) == code
    except SystemExit as exc:  # argparse itself
        assert exc.code == code
    assert re.search(said, capsys.readouterr().err)


def test_provision_wheels_for_another_board(words, wheels, capsys):
    other = "3.13" if PYTHON != "3.13" else "3.12"
    assert main(words(wheels=wheels(other, platform.machine(), "others"))) == 3
    err = capsys.readouterr().err
    assert (
        f"127.0.0.1 has {platform.machine()} and Python {PYTHON}, and the wheels are for {platform.machine()} and "
        in err
    )


def test_host_that_would_be_an_option_is_refused():
    with pytest.raises(HostUnusable, match="is no host"):
        SshHost(name="-oProxyCommand=touch /tmp/x")


@pytest.mark.process
def test_without_ssh_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostUnusable, match="install an SSH client"):
        look(SshHost(name="h"), PYTHON, None)
