"""Boards that are emulated: Debian for arm64, made here, under QEMU. By `make test-arm` and `make test-boards` alone.

What takes long to make (Debian, wheels) is kept in .emulation/ and used again; `make clean` removes it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".emulation"
SUITE = "bookworm"
INITRD = (
    '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"'
    ' && echo MODULES=list > "$1/etc/initramfs-tools/conf.d/modules"'
    ' && printf "%s\\n" virtio_pci virtio_blk > "$1/usr/share/initramfs-tools/modules.d/virtio"'
)
BOARD_PACKAGES = (
    "python3", "libstdc++6", "systemd-sysv", "systemd-timesyncd", "udev", "dbus", "kmod", "iproute2", "netplan.io",
    "cloud-init", "sudo", "ca-certificates", "initramfs-tools", "linux-image-cloud-arm64",
)  # fmt: skip
CORE = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""A Raspberry Pi 4's, because the engine asks which processor this is and must not see this machine's."""
_began_s = time.monotonic()


@pytest.fixture(scope="session")
def fixtures():
    """The tests' tiny bundle and data set."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture(scope="session")
def say():
    """Tells a person how far it is; these tests take minutes."""
    return lambda text: print(f"[{time.monotonic() - _began_s:6.0f} s] {text}", file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def needs():
    """Fails, with what to install, where programs are missing: nobody calls these tests by mistake."""

    def check(**packages):
        """The programs of each package."""
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        found = {
            package: [shutil.which(each, path=path) for each in programs] for package, programs in packages.items()
        }
        if missing := " ".join(sorted(package.replace("_", "-") for package, all_ in found.items() if None in all_)):
            pytest.fail(f"programs are missing: apt-get install {missing}", pytrace=False)

    return check


@pytest.fixture(scope="session")
def run():
    """Runs a program to its end; what it said, or its last words as the failure."""

    def run(*words, limit_s=1800, **more):
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", **more.pop("env", {})}
        done = subprocess.run(
            [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=limit_s, check=False, env=environment, **more,
        )  # fmt: skip
        assert done.returncode == 0, f"{words[0]} ended with {done.returncode}: {done.stderr[-3000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def ours(run):
    """Runs a command of ours as a user does, in the tree under test."""
    return lambda module, *words, **more: run(
        sys.executable, "-m", module, *words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, **more
    )


@pytest.fixture(scope="session")
def debian(run, say):
    """Debian's packages for arm64 in a folder that is kept. `extract`: unpacked alone, which needs no root.

    The modules of the first file system are named, because finding them all takes minutes under emulation.
    """

    def make(name, packages, *, extract):
        made, root = KEPT / f"{name}.json", KEPT / name
        wanted = {"suite": SUITE, "packages": sorted(packages), "extract": extract}
        if made.is_file() and json.loads(made.read_text()) == wanted:
            say(f"Debian is here: {root}")
            return root
        made.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        KEPT.mkdir(exist_ok=True)
        say(f"making Debian {SUITE} for arm64 in {root} ({'seconds' if extract else 'about ten minutes'})")
        way = ["--mode=chrootless", "--variant=extract"] if extract else ["--mode=root", "--variant=minbase", INITRD]
        run(
            "mmdebstrap", "--quiet", "--architectures=arm64", *way, f"--include={','.join(packages)}", SUITE, root,
            limit_s=3600, env={"QEMU_CPU": "cortex-a72"},
        )  # fmt: skip
        made.write_text(json.dumps(wanted))
        return root

    return make


@pytest.fixture(scope="session")
def board_root(needs, debian):
    """A board's whole root file system, which is kept: not to be changed."""
    needs(mmdebstrap=["mmdebstrap"], arch_test=["arch-test"], binfmt_support=["update-binfmts"])
    if os.geteuid() != 0:
        pytest.fail("a root file system has files of root's: run this as root", pytrace=False)
    return debian("board", BOARD_PACKAGES, extract=False)


@pytest.fixture(scope="session")
def wheels(ours, say):
    """What a board with this Debian installs, by the command that the guide names."""
    say("fetching what the board installs")
    ours("devices", "wheelhouse", "--board", "aarch64", "--system", SUITE, "--out", KEPT / "wheels")
    return KEPT / "wheels"


@pytest.fixture(scope="session")
def board_command(needs, debian, wheels, run, say, tmp_path_factory):
    """The command, and its environment, of Python in an emulated board's environment: what `.[board]` installs."""
    needs(qemu_user_static=["qemu-aarch64-static"], mmdebstrap=["mmdebstrap"])
    root = debian("arm", ["python3", "libstdc++6"], extract=True)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("".join(CORE.format(n) for n in range(2)))
    cores = root / "sys/devices/system/cpu"
    cores.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present", "online"):
        (cores / name).write_text("0-1\n")
    made = tmp_path_factory.mktemp("board") / "environment"
    emulator = ["qemu-aarch64-static", "-L", root]
    environment = {"QEMU_CPU": "cortex-a72", "ORT_DISABLE_TELEMETRY": "1"}

    def python(program, *words):
        run(*emulator, program, *words, cwd=made.parent, env={**environment, "PYTHONPATH": ""})

    say("installing the board's environment")
    python(root / "usr/bin/python3", "-m", "venv", "--without-pip", made)
    (pip,) = wheels.glob("pip-*.whl")
    python(
        made / "bin/python", pip / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir",
        "--no-index", "--find-links", wheels, "mas-edge[board]",
    )  # fmt: skip
    return [*emulator, made / "bin/python"], environment
