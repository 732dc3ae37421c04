"""install.sh, run for real into another root folder, with small wheels and the pip that Python brings."""

import contextlib
import ensurepip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices.firstboot import install_unit
from devices.firstboot.agent import read as read_agent
from devices.firstboot.bundle import bundle
from devices.firstboot.settings import board_settings
from devices.wheelhouse import read as read_wheels

PYTHON = "{}.{}".format(*sys.version_info[:2])
AGENT = "import sys\nprint('ran with', *sys.argv[1:])\n"


@pytest.fixture
def folder(tmp_path, wheel, agent_toml):
    """What a card's folder mas-edge holds."""
    pip = next(iter(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")), None)
    if pip is None:
        pytest.skip("this Python brings no wheel of pip")
    house = tmp_path / "house"
    house.mkdir()
    shutil.copy(pip, house)
    wheel(house, "mas_edge", requires=['numpy>=1; extra == "board"'], modules={"edge_runtime/__main__.py": AGENT})
    wheel(house, "numpy", "2.0")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in house.glob("*.whl")}
    (house / "wheelhouse.json").write_text(
        json.dumps({"python": PYTHON, "architecture": "aarch64", "glibc": "2.41", "files": files})
    )
    settings = board_settings(device="pi-01", python=PYTHON, reserve_mib=64, ntp="10.0.0.1")
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/image.npy").write_bytes(b"numbers")
    content = bundle(settings, read_agent(agent_toml()), read_wheels(house), tmp_path / "data")
    out = tmp_path / "mas-edge"
    for name, data in content.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    return out


def install(folder, root, *, path="", limit_s=300, **more):
    environment = {"PATH": f"{path}{Path(sys.executable).parent}:/usr/bin:/bin", "MAS_EDGE_ROOT": str(root), **more}
    return subprocess.run(
        ["sh", folder / "install.sh"], env=environment, capture_output=True, text=True, check=False, timeout=limit_s
    )


CUT = """#!/bin/sh
n=0
[ ! -f "$COUNT" ] || read -r n < "$COUNT"
n=$((n + 1))
echo $n > "$COUNT"
[ $n != "$CUT_AT" ] || { kill -9 $PPID; exit 1; }
exec "/usr/bin/${0##*/}" "$@"
"""
"""Stands for a program, and at some call cuts the script off before it."""
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""How the script ends: killed itself, or a part of it that runs in a shell of its own."""
CUTTING = ("chmod", "cp", "dd", "install", "mkdir", "mv", "rm", "sed", "sync")
QUICK_PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) echo 3.99 ;;
    *venv*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    *) echo all > "${0%/bin/python}/installed" ;;
esac
"""


@pytest.fixture
def cut_off(folder, tmp_path):
    """Runs install.sh from the start and cuts it off before the n-th program that changes anything."""
    programs, count, python = tmp_path / "programs", tmp_path / "count", tmp_path / "python"
    programs.mkdir()
    for path, text in [(python, QUICK_PYTHON), *((programs / name, CUT) for name in CUTTING)]:
        path.write_text(text)
        path.chmod(0o755)
    resettle(folder, f"PYTHON_VERSION={PYTHON}\nPYTHON_PATH=''", f"PYTHON_VERSION=3.99\nPYTHON_PATH={python}")

    def run(at):
        count.unlink(missing_ok=True)
        card = shutil.copytree(folder, tmp_path / f"card-{at}")
        return card, install(card, tmp_path / f"root-{at}", path=f"{programs}:", COUNT=str(count), CUT_AT=str(at))

    return run


@pytest.mark.process
def test_install_cut_off_anywhere_keeps_the_token_and_ends_whole_the_next_time(folder, tmp_path, cut_off):
    token = (folder / "agent.toml").read_bytes()
    for at in range(1, 100):
        card, done = cut_off(at)
        root = tmp_path / f"root-{at}"
        kept, code = root / "var/lib/mas-edge/agent.toml", root / "opt/mas-edge"
        places = [path for path in (card / "agent.toml", kept) if path.exists()]
        assert {path.read_bytes() for path in places} == {token}, f"cut off at {at}: the token is not whole"
        assert not code.exists() or (code / "installed").exists(), f"cut off at {at}: the environment is half made"
        assert code.exists() <= (not list(card.glob("agent.*"))), f"cut off at {at}: the token is on the card for long"
        if done.returncode == 0:
            break
        assert done.returncode in KILLED, done.stderr
        done = install(card, root)
        assert done.returncode == 0, done.stderr
        assert kept.read_bytes() == token
        assert kept.stat().st_mode & 0o777 == 0o600
        assert (kept.parent / "data/train/image.npy").read_bytes() == b"numbers"
        assert (root / "etc/systemd/system/mas-edge.service").read_text().endswith("multi-user.target\n")
        assert not list(card.glob("agent.*"))
        assert not list(root.rglob("*.new"))
    assert 20 < at < 99


@pytest.mark.process
def test_install_overwrites_the_token_on_the_card(folder, cut_off):
    size = (folder / "agent.toml").stat().st_size
    spent = [path.read_bytes() for at in range(5, 12) for path in cut_off(at)[0].glob("agent.spent")]
    assert bytes(size) in spent


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_install_killed_at_ten_random_moments_ends_whole(folder, tmp_path, seed):
    moments = random.Random(seed)
    root = tmp_path / "root"
    for _ in range(10):
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "MAS_EDGE_ROOT": str(root)}
        process = subprocess.Popen(["sh", folder / "install.sh"], env=environment, start_new_session=True)
        time.sleep(moments.uniform(0.0, 4.0))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert install(folder, root).returncode == 0
    code = root / "opt/mas-edge"
    assert subprocess.run([code / "bin/python", "-m", "edge_runtime"], cwd=root, env={}, check=True).returncode == 0


@pytest.mark.process
def test_install_after_a_power_cut_sets_up_everything_and_again_changes_nothing(folder, tmp_path):
    root = tmp_path / "root"
    (root / "opt/mas-edge.new/bin").mkdir(parents=True)  # what an installation that was cut off has left
    (root / "opt/mas-edge").mkdir()
    token = (folder / "agent.toml").read_bytes()
    done = install(folder, root)
    assert done.returncode == 0, done.stderr
    assert re.search(r"pi-01 is set up: at most (\d+) of \d+ MiB are the agent's", done.stdout)
    agent = root / "var/lib/mas-edge/agent.toml"
    assert agent.read_bytes() == token
    assert agent.stat().st_mode & 0o777 == 0o600
    assert agent.parent.stat().st_mode & 0o777 == 0o700
    assert not (folder / "agent.toml").exists()
    assert (agent.parent / "data/train/image.npy").read_bytes() == b"numbers"
    ran = subprocess.run(
        [root / "opt/mas-edge/bin/python", "-m", "edge_runtime", "run"],
        cwd=root,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "ran with run\n"
    unit = (root / "etc/systemd/system/mas-edge.service").read_text()
    assert re.search(r"^MemoryMax=\d+M$", unit, re.MULTILINE)
    assert re.search(r"^Environment=MAS_EDGE_MEMORY_MAX=\d+MiB$", unit, re.MULTILINE)
    assert "@" not in unit.replace("@system-service", "").replace("@privileged", "")
    assert "power_save off" in (root / "etc/udev/rules.d/70-mas-edge.rules").read_text()
    assert (root / "etc/systemd/timesyncd.conf.d/mas-edge.conf").read_text() == "[Time]\nNTP=10.0.0.1\n"
    assert not (root / "opt/mas-edge.new").exists()

    stamp = (root / "opt/mas-edge/pyvenv.cfg").stat().st_mtime_ns
    (folder / "agent.toml").write_text("a new token")
    done = install(folder, root)
    assert done.returncode == 0, done.stderr
    assert (root / "opt/mas-edge/pyvenv.cfg").stat().st_mtime_ns == stamp
    assert agent.read_text() == "a new token"


@pytest.mark.process
def test_install_gives_no_more_memory_than_there_is_and_checks_that_the_kernel_holds_to_it(folder, tmp_path):
    root = tmp_path / "root"
    settings = (folder / "settings").read_text()
    digest = re.search(r"WHEELS_DIGEST=(\S+)", settings)[1]
    (root / "opt/mas-edge").mkdir(parents=True)
    (root / "opt/mas-edge/wheels").write_text(digest)
    resettle(folder, "MEMORY_MAX_MIB=''", "MEMORY_MAX_MIB=99999999")
    (root / "boot/firmware").mkdir(parents=True)
    line = root / "boot/firmware/cmdline.txt"
    line.write_text("console=tty1 rootwait\n")
    for _ in range(2):
        done = install(folder, root)
        assert done.returncode == 0, done.stderr
        assert re.search(r"so (\d+) MiB are the agent's in place of the 99999999 MiB", done.stdout)
        assert "holds nobody to a limit of memory now" in done.stdout
        assert line.read_text() == "console=tty1 rootwait cgroup_enable=memory\n"
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert "holds nobody" not in install(folder, root).stdout


def resettle(folder, old, new):
    """Change settings, and their sum."""
    path, sums = folder / "settings", folder / "SHA256SUMS"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    lines = [line for line in sums.read_text().splitlines() if not line.endswith("  settings")]
    sums.write_text("\n".join([*lines, f"{hashlib.sha256(path.read_bytes()).hexdigest()}  settings"]) + "\n")


@pytest.mark.process
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: next(f.glob("wheels/numpy*")).write_bytes(b"x"), "are damaged: prepare the card again"),
        (lambda f: (f / "settings").unlink(), "has no file 'settings'"),
        (lambda f: (f / "agent.toml").unlink(), "there is no agent.toml"),
    ],
)
def test_install_what_is_missing_or_damaged_is_said(folder, tmp_path, spoil, said):
    spoil(folder)
    done = install(folder, tmp_path / "root")
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.process
def test_install_another_python_than_the_wheels_are_for(folder, tmp_path):
    resettle(folder, f"PYTHON_VERSION={PYTHON}", "PYTHON_VERSION=3.99")
    done = install(folder, tmp_path / "root")
    assert done.returncode == 1
    assert "the wheels are for Python 3.99, which this system has not" in done.stderr
    assert not (tmp_path / "root/opt").exists()


def test_script_passes_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed here")
    script = Path(__file__).parents[3] / "devices/firstboot/install.sh"
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.process
def test_unit_is_one_that_systemd_accepts(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    text = Path(__file__).parents[3].joinpath("devices/firstboot/mas-edge.service").read_text()
    agent = text.replace("@MEMORY_MAX@", "300").replace("/opt/mas-edge/bin/python", "/bin/true")
    for name, content in (
        ("mas-edge.service", agent),
        (install_unit.NAME, install_unit.unit("/boot/firmware/mas-edge")),
    ):
        path = tmp_path / name
        path.write_text(content)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize(
    "directive", ["MemoryMax", "Restart", "WatchdogSec", "ProtectSystem", "NoNewPrivileges", "User"]
)
def test_unit_is_hardened(directive):
    text = Path(__file__).parents[3].joinpath("devices/firstboot/mas-edge.service").read_text()
    assert re.search(rf"^{directive}=\S+$", text, re.MULTILINE)
    assert re.search(r"^After=.*\btime-sync.target$", text, re.MULTILINE)
