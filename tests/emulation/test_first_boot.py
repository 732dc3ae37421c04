"""A board's first boot that is cut off, without a kernel of its own: what its boots run, in Debian for arm64 under user
emulation. In minutes it reaches what a whole emulated board is switched off too early for: the end of the installation.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from devices.firstboot.agent import read as read_agent
from devices.firstboot.bundle import bundle
from devices.firstboot.cloudinit import EACH_BOOT
from devices.firstboot.install_unit import UNIT, WANTED
from devices.firstboot.settings import board_settings
from devices.wheelhouse import read as read_wheels

pytestmark = [pytest.mark.emulated, pytest.mark.workstation]

AGENT = f"""device = "board-01"
federation = "home"
url = "mqtts://server.lan:8883"
token = "t0ken"
server_key = "{"9f" * 32}"
data = "data"
state = "state"
"""
BOOT = f"""{EACH_BOOT}
[ -L /{WANTED} ] || exit 0
eval "exec $(sed -n 's/^ExecStart=//p' /{UNIT})"
"""
"""What cloud-init runs at each boot, and then the service, if it is still to be started."""
LIMIT_S = 1500.0


@pytest.fixture
def root(board_root, run, tmp_path):
    """A board's root file system with a card's folder in it."""
    copy = tmp_path / "root"
    run("cp", "-a", "--reflink=auto", board_root, copy)
    run("mount", "-t", "proc", "proc", copy / "proc")
    yield copy
    run("umount", copy / "proc")
    shutil.rmtree(copy)


@pytest.fixture
def card(root, wheels, tmp_path):
    (tmp_path / "agent.toml").write_text(AGENT)
    settings = board_settings(device="board-01", python="3.11", reserve_mib=64)
    folder = root / "boot/firmware/mas-edge"
    for name, data in bundle(settings, read_agent(tmp_path / "agent.toml"), read_wheels(wheels)).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    return folder


@pytest.fixture
def boot(root):
    """Starts what a boot runs."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "QEMU_CPU": "cortex-a72"}
    words = ["chroot", str(root), "sh", "-c", BOOT]
    return lambda log: subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)


def test_first_boot_cut_off_at_ten_random_moments_ends_installed(root, card, boot, run, say, tmp_path):
    moments = random.Random(os.environ.get("MAS_EDGE_SEED", "1"))
    kept, code = root / "var/lib/mas-edge/agent.toml", root / "opt/mas-edge"
    for number in range(10):
        with (tmp_path / f"{number}.log").open("wb") as log:
            process = boot(log)
            time.sleep(after_s := moments.uniform(0.0, 90.0))
            ended = process.poll()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        places = [path for path in (card / "agent.toml", kept) if path.exists()]
        assert {path.read_text() for path in places} == {AGENT}
        assert not code.exists() or (code / "wheels").exists()
        begun = (root / "opt/mas-edge.new").exists()
        where = "installed" if code.exists() else "begun" if begun else "not begun"
        say(
            f"cut off after {after_s:.0f} s{'' if ended is None else ', when all was done'}: the environment is {where}"
        )
    with (tmp_path / "last.log").open("wb") as log:
        assert boot(log).wait(LIMIT_S) == 0, (tmp_path / "last.log").read_text()[-3000:]
    say("it is installed")
    assert not (root / WANTED).is_symlink()
    assert (root / "etc/systemd/system/multi-user.target.wants/mas-edge.service").is_symlink()
    assert not card.exists()
    assert kept.read_text() == AGENT
    assert kept.stat().st_mode & 0o777 == 0o600
    (uid,) = re.findall(r"^mas-edge:x:(\d+):.*:/var/lib/mas-edge:", (root / "etc/passwd").read_text(), re.MULTILINE)
    assert kept.stat().st_uid == int(uid)
    places = (root / "opt", root / "var/lib/mas-edge", root / "etc/systemd")
    assert [path for place in places for path in place.rglob("*.new")] == []
    python = ["chroot", root, "/opt/mas-edge/bin/python"]
    assert "join a federation" in run(*python, "-m", "edge_runtime", "--help", env={"QEMU_CPU": "cortex-a72"})
