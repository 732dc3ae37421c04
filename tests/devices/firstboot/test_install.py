"""install.sh, run for real into another root folder, with small wheels and the pip that Python brings."""

import ensurepip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    content = bundle(settings, read_agent(agent_toml()), read_wheels(house), tmp_path / "data", start=True)
    out = tmp_path / "mas-edge"
    for name, data in content.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    return out


def install(folder, root):
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "MAS_EDGE_ROOT": str(root)}
    return subprocess.run(
        ["sh", folder / "install.sh"], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


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
    assert "@" not in unit.replace("@system-service", "").replace("@privileged", "")
    assert (root / "etc/systemd/timesyncd.conf.d/mas-edge.conf").read_text() == "[Time]\nNTP=10.0.0.1\n"
    assert not (root / "opt/mas-edge.new").exists()

    stamp = (root / "opt/mas-edge/pyvenv.cfg").stat().st_mtime_ns
    (folder / "agent.toml").write_text("a new token")
    done = install(folder, root)
    assert done.returncode == 0, done.stderr
    assert (root / "opt/mas-edge/pyvenv.cfg").stat().st_mtime_ns == stamp
    assert agent.read_text() == "a new token"


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
    path = folder / "settings"
    path.write_text(path.read_text().replace(f"PYTHON_VERSION={PYTHON}", "PYTHON_VERSION=3.99"))
    sums = folder / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith("  settings")]
    sums.write_text("\n".join([*lines, f"{hashlib.sha256(path.read_bytes()).hexdigest()}  settings"]) + "\n")
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
    path = tmp_path / "mas-edge.service"
    path.write_text(text.replace("@MEMORY_MAX@", "300M").replace("/opt/mas-edge/bin/python", "/bin/true"))
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
