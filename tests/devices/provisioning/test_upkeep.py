"""Updates, removal and logs: the scripts in another root folder, and a fleet of three over a real sshd."""

import hashlib
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import devices.provisioning
from devices.__main__ import main
from devices.provisioning.upkeep import redact

SCRIPTS = Path(devices.provisioning.__file__).parent
MACHINE = platform.machine()
PYTHON = """#!/bin/sh
case "$*" in
    *venv*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    *) echo all > "${0%/bin/python}/installed" ;;
esac
"""
SYSTEMCTL = """#!/bin/sh
root=${0%/systemctl}
echo "$*" >> "$root/asked"
case "$1" in
    is-active) ! grep -qsxf "$root/bad" "$root/opt/mas-edge/wheels" ;;
    show) echo 0 ;;
esac
"""
"""A service that does not live with the version whose digest is in the file `bad`."""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def set_up(root):
    """A board as install.sh leaves it."""
    program(root / "systemctl", SYSTEMCTL)
    program(root / "opt/mas-edge/bin/python", PYTHON)
    (root / "opt/mas-edge/wheels").write_text("old\n")
    for name in (
        "etc/systemd/system/mas-edge.service",
        "var/lib/mas-edge/agent.toml",
        "boot/firmware/mas-edge/settings",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


@pytest.fixture
def update(tmp_path):
    """Runs update.sh on a board that is set up, for a new version."""
    root, folder = tmp_path / "root", tmp_path / "sent"
    set_up(root)
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels/pip-1-py3-none-any.whl").touch()
    (folder / "settings").write_text("WHEELS_DIGEST=new\nHEALTH_S=1\n")
    shutil.copy(SCRIPTS / "update.sh", folder)
    names = ("settings", "update.sh")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")

    def run():
        environment = {"PATH": "/usr/bin:/bin", "MAS_EDGE_ROOT": str(root)}
        return root, subprocess.run(
            ["sh", folder / "update.sh"], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


def version(root):
    return (root / "opt/mas-edge/wheels").read_text().strip()


@pytest.mark.process
def test_update_that_lives_stays_and_again_changes_nothing(update):
    root, done = update()
    assert (done.returncode, done.stdout) == (0, "mas-edge: updated\n"), done.stderr
    assert version(root) == "new"
    assert (root / "opt/mas-edge/installed").exists()
    assert [path.name for path in (root / "opt").iterdir()] == ["mas-edge"]
    (root / "asked").unlink()
    assert update()[1].stdout == "mas-edge: this version is here already\n"
    assert not (root / "asked").exists()


@pytest.mark.process
def test_update_that_does_not_live_goes_back(update, tmp_path):
    (tmp_path / "root/bad").write_text("new\n")
    root, done = update()
    assert done.returncode == 1
    assert "did not live for 1 s with the new version: the one before is back" in done.stderr
    assert version(root) == "old"
    assert [path.name for path in (root / "opt").iterdir()] == ["mas-edge"]
    assert (root / "asked").read_text().splitlines()[-1] == "restart mas-edge.service"


@pytest.mark.process
def test_update_cut_off_between_its_moves_is_taken_up(update, tmp_path):
    root = tmp_path / "root"
    (root / "opt/mas-edge").rename(root / "opt/mas-edge.old")
    assert update()[1].returncode == 0
    assert version(root) == "new"
    shutil.rmtree(root / "opt/mas-edge")
    assert "there is no agent here: set the board up" in update()[1].stderr


@pytest.mark.process
@pytest.mark.parametrize("purge", [False, True])
def test_uninstall_leaves_what_was_stored_unless_it_is_to_go_too(tmp_path, purge):
    root = tmp_path / "root"
    set_up(root)
    environment = {"PATH": "/usr/bin:/bin", "MAS_EDGE_ROOT": str(root)}
    words = ["sh", SCRIPTS / "uninstall.sh", *["purge"] * purge]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert ("nothing of it is left" in done.stdout) == purge
    assert (root / "var/lib/mas-edge/agent.toml").exists() != purge
    left = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(("opt", "etc", "boot"))]
    assert "--quiet disable --now mas-edge.service" in (root / "asked").read_text()


def test_logs_have_no_secrets():
    token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJwaSJ9.c2lnbmF0dXJl"
    said = redact(f'a {token} b\ntoken = "s3cret" code = "{"0" * 32}" password: hunter2\n{{"token": "x"}} PSK=y\n')
    assert said == 'a *** b\ntoken = *** code = *** password: ***\n{"token": *** PSK=***\n'
    plain = "round 1: done, token renewed\nMain process exited, code=exited, status=1/FAILURE\n"
    assert redact(plain) == plain


FLEET = """
[defaults]
board = "rpi5"
wheels = "new"

[[device]]
device = "pi-01"
ssh = "127.0.0.1"

[[device]]
device = "pi-02"
ssh = "127.0.0.1"
wheels = "bad"

[[device]]
device = "pi-03"
ssh = "127.0.0.1"
wheels = "third"
"""


@pytest.fixture
def fleet(sshd, wheels, wheel, tmp_path):
    """Three boards that are one, each with a version of its own, of which the second does not live."""
    if MACHINE not in {"x86_64", "aarch64"}:
        pytest.skip(f"no wheels for {MACHINE}")
    set_up(sshd / "root")
    for name in ("new", "bad", "third"):
        folder = wheels("3.13", MACHINE, name)
        path = wheel(folder, "extra", modules={"extra.py": name})
        manifest = json.loads((folder / "wheelhouse.json").read_text())
        manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "wheelhouse.json").write_text(json.dumps(manifest))
    from devices.wheelhouse import read

    (sshd / "root/bad").write_text(f"{read(tmp_path / 'bad').digest}\n")
    (tmp_path / "fleet.toml").write_text(FLEET)
    yield ["--fleet", str(tmp_path / "fleet.toml"), "--ssh-config", str(sshd / "config")]
    shutil.rmtree(sshd / "root")


@pytest.mark.process
def test_fleet_is_updated_in_stages_and_stops_at_a_board_that_goes_back(fleet, sshd, tmp_path, capsys):
    from devices.wheelhouse import read

    root, good = sshd / "root", read(tmp_path / "new").digest
    assert main(["update", *fleet]) == 1
    assert version(root) == "old"
    assert main(["update", *fleet, "--health", "1", "--yes"]) == 4
    said = capsys.readouterr().out
    assert "127.0.0.1: mas-edge: updated\n" in said
    assert "did not live for 1 s with the new version: the one before is back" in said
    assert said.endswith("stopped: 1 updated, 1 left as they are\n")
    assert version(root) == good
    assert main(["update", *fleet, "--only", "pi-02", "--health", "1", "--yes"]) == 3
    assert "the one before is back" in capsys.readouterr().err
    assert version(root) == good
    assert main(["uninstall", *fleet, "--only", "pi-01"]) == 1
    assert (root / "opt/mas-edge").exists()
    assert main(["uninstall", *fleet, "--only", "pi-01", "--yes"]) == 0
    assert "its data set, key and results stay" in capsys.readouterr().out
    assert not (root / "opt/mas-edge").exists()


@pytest.mark.process
def test_logs_come_from_the_board_bounded(fleet, sshd, capsys):
    assert main(["logs", *fleet, "--only", "pi-01", "--lines", "5"]) in {0, 3}  # 3: no journal here
    assert main(["logs", *fleet, "--lines", "0"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["update", "--ssh", "pi"], 2, "give --wheels with the new version"),
        (["update", "--ssh", "pi", "--health", "0"], 2, "--health must be between 1 and 3600"),
        (["uninstall", "--ssh", "-oX=y"], 2, ""),
        (["uninstall", "--ssh", "a b", "--yes"], 3, "is no host"),
        (["logs", "--ssh", "pi", "--only", "pi-01"], 2, "there is no device pi-01 in no fleet"),
        (["update"], 2, ""),
    ],
)
def test_wrong_words_are_one_sentence(words, code, said, capsys):
    try:
        assert main(words) == code
    except SystemExit as exc:  # argparse itself
        assert exc.code == code
    assert said in capsys.readouterr().err
