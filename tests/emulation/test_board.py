"""A board from the image to the report by the documented commands alone, emulated from its first boot on.

The image is made here as a distribution makes one: Debian for arm64, a FAT boot partition with kernel, cmdline.txt and
cloud-init's files, an ext4 root. `python -m devices flash` sets it up; QEMU boots the result with what lies on its boot
partition, as a board's firmware does; and this machine's server waits for the device to enrol, train and be reported.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from ports import free_port

pytestmark = [pytest.mark.emulated, pytest.mark.workstation]

DEVICE = "board-01"
HOST = "10.0.2.2"
"""This machine, as a guest of QEMU's user network sees it."""
WRONG_TIME = "2024-02-03T04:05:06"
"""What the board's clock says when it is switched on: without a time server it would stay there."""
LIMIT_S = 3600.0
MIB = 1 << 20
BOOT_MIB = 192
MEMORY_MIB = 1024
CMDLINE = "console=ttyAMA0 root=LABEL=rootfs rootfstype=ext4 rootwait systemd.journald.forward_to_console=1\n"
BOOTFS = {"meta-data": "instance-id: as-shipped\n", "user-data": "#cloud-config\n", "cmdline.txt": CMDLINE}
CLOUD = "datasource_list: [NoCloud, None]\ndatasource: {NoCloud: {fs_label: bootfs}}\n"
FSTAB = "LABEL=rootfs / ext4 defaults 0 1\nLABEL=bootfs /boot/firmware vfat defaults 0 0\n"
JOINS = r"device board-01 joins federation"
STEPS = (
    ("the kernel runs", r"Linux version"),
    ("cloud-init has begun", r"Cloud-init v\.[^\n]*running"),
    ("the installation has begun", r"mas-edge: installing the agent"),
    ("the agent is installed", r"mas-edge: board-01 is set up: at most (\d+) of \d+ MiB"),
    ("the agent joins", JOINS),
    ("it trains", r"round 1: train"),
    ("its update is acknowledged", r"round 1: done"),
)
"""What a first boot says, in order."""


@pytest.fixture(scope="module")
def image(needs, board_root, run, say, tmp_path_factory):
    """An image as a distribution ships it, packed."""
    needs(
        mmdebstrap=["mmdebstrap"], arch_test=["arch-test"], binfmt_support=["update-binfmts"],
        qemu_user_static=["qemu-aarch64-static"], qemu_system_arm=["qemu-system-aarch64"],
        mtools=["mcopy", "mdir"], dosfstools=["mkfs.vfat", "fsck.fat"], e2fsprogs=["mke2fs", "e2fsck", "debugfs"],
        fdisk=["sfdisk"], xz_utils=["xz"],
    )  # fmt: skip
    root = board_root
    folder = tmp_path_factory.mktemp("image")
    say("making the image")
    boot, system, disk = folder / "boot", folder / "system", folder / "debian.img"
    run("mkfs.vfat", "-C", "-n", "bootfs", "-F", "32", boot, BOOT_MIB * 1024)
    (kernel,), (initrd,) = root.glob("boot/vmlinuz-*"), root.glob("boot/initrd.img-*")
    for source, name in ((kernel, "vmlinuz"), (initrd, "initrd.img")):
        run("mcopy", "-i", boot, source, f"::/{name}")
    for name, text in BOOTFS.items():
        (folder / name).write_text(text)
        run("mcopy", "-i", boot, folder / name, f"::/{name}")
    (root / "etc/cloud/cloud.cfg.d/99-bootfs.cfg").write_text(CLOUD)
    (root / "etc/fstab").write_text(FSTAB)
    (root / "etc/machine-id").write_text("")
    (root / "boot/firmware").mkdir(exist_ok=True)
    used_mib = int(run("du", "-sm", root).split()[0])
    run("mke2fs", "-q", "-t", "ext4", "-L", "rootfs", "-d", root, system, f"{used_mib * 5 // 4 + 500}M")
    start, middle, size = 8192, 8192 + BOOT_MIB * 2048, system.stat().st_size // 512
    table = f"label: dos\nstart={start},size={BOOT_MIB * 2048},type=c,bootable\nstart={middle},size={size},type=83\n"
    disk.touch()
    os.truncate(disk, (middle + size) * 512)
    subprocess.run(["/usr/sbin/sfdisk", "--quiet", disk], input=table, text=True, check=True)
    for part, at in ((boot, start), (system, middle)):
        words = [f"if={part}", f"of={disk}", "bs=1M", f"seek={at * 512}", "oflag=seek_bytes"]
        run("dd", "conv=sparse,notrunc", "status=none", *words)
        part.unlink()
    say(f"packing the image, {disk.stat().st_size / 1e6:.0f} MB")
    run("xz", "-0", "--threads=0", disk)
    return disk.with_name("debian.img.xz")


@pytest.fixture
def time_server():
    """The time by SNTP (RFC 4330) on the port that every client asks."""
    stop, asked = threading.Event(), []
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listening:
        try:
            listening.bind(("127.0.0.1", 123))
        except OSError as exc:
            pytest.fail(
                f"no time server ({exc.strerror}): the board's clock would stay wrong, and no certificate be good",
                pytrace=False,
            )
        listening.settimeout(1.0)

        def serve():
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    data, client = listening.recvfrom(1024)
                    now_s = time.time() + 2_208_988_800
                    stamp = struct.pack(">II", int(now_s), int(now_s % 1 * 2**32))
                    head = struct.pack(">BBbb", 0x24, 1, data[2], -20) + bytes(8) + b"GPS\0"
                    listening.sendto(head + stamp + data[40:48] + stamp + stamp, client)
                    asked.append(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        stop.set()
        thread.join()


@pytest.fixture
def started():
    """Starts processes, and kills what is left of them."""
    processes = []

    def start(log, *words, **more):
        with log.open("wb") as said:
            process = subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=said, stderr=said, **more
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def serve(started, fixtures, port):
    """Starts a server for one device and one round."""

    def serve(state):
        log = state.with_suffix(".log")
        server = started(
            log, sys.executable, "-m", "broker_server", "--bundle", fixtures / "bundle", "--state", state,
            "--tls", "always", "--host-name", HOST,
            "--host", "127.0.0.1", "--port", port, "--quiet", "--exit-when-finished", "--merged-rounds", 1,
            "--probe-rounds", 1, "--probe-every", 1, "--split-rounds", 1, "--groups", 1, "--min-devices", 1,
            "--quorum", 1, "--batch", 4, "--lr", 0.02, "--seed", 3, "--round-deadline-s", 1800,
            cwd=fixtures.parents[1],
        )  # fmt: skip
        wait((state / "url").is_file, server, log, 120.0)  # its CA is there, which enrolling pins
        return server

    return serve


@pytest.fixture
def flash(image, wheels, fixtures, ours, port, say):
    """Writes a card for the device, enrolled with the server of that state."""

    def flash(state, card):
        say("flashing")
        words = [
            "flash", "--board", "aarch64", "--image", image, "--sha256", hashlib.sha256(image.read_bytes()).hexdigest(),
            "--wheels", wheels, "--device-id", DEVICE, "--enrol", state, "--server", f"mqtts://{HOST}:{port}",
            "--data", fixtures / "data", "--ntp", HOST, "--timezone", "Europe/Berlin", "--to", card,
        ]  # fmt: skip
        say(ours("devices", *words, "--yes").strip())

    return flash


@pytest.fixture
def boot_files(run, tmp_path):
    """Copies files of a card's boot partition, by others' programs."""

    def copy(card, *names):
        for name in names:
            run("mcopy", "-o", "-i", f"{card}@@{8192 * 512}", f"::/{name}", tmp_path / name)
        return [tmp_path / name for name in names]

    return copy


@pytest.fixture
def switch_on(started, boot_files):
    """Starts a board from a card, with what lies on its boot partition, as a board's firmware does."""

    def switch_on(card, console):
        kernel, initrd, line = boot_files(card, "vmlinuz", "initrd.img", "cmdline.txt")
        return started(
            console, "nice", "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", 2, "-m", MEMORY_MIB,
            "-display", "none", "-monitor", "none", "-serial", "stdio", "-rtc", f"base={WRONG_TIME}",
            "-kernel", kernel, "-initrd", initrd, "-append", line.read_text().strip(),
            "-drive", f"if=virtio,format=raw,file={card}",
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
        )  # fmt: skip

    return switch_on


def test_board_comes_from_an_image_to_the_report(
    board_root, fixtures, ours, run, flash, boot_files, switch_on, serve, time_server, port, say, tmp_path
):
    # The server, and a card that it gives a token to.
    state, card, console = tmp_path / "state", tmp_path / "card.img", tmp_path / "console.log"
    server = serve(state)
    flash(state, card)

    # What lies on the boot partition, by others' programs.
    boot = tmp_path / "boot.img"
    with card.open("rb") as file:
        file.seek(8192 * 512)
        boot.write_bytes(file.read(BOOT_MIB * MIB))
    run("fsck.fat", "-n", boot)
    assert "agent.toml" in run("mdir", "-b", "-i", boot, "::/mas-edge/")
    user_data, words = boot_files(card, "user-data", "cmdline.txt")
    root = board_root
    check = ["-m", "cloudinit.cmd.main", "schema", "--config-file", user_data]
    run("qemu-aarch64-static", "-L", root, root / "usr/bin/python3", *check, env={"QEMU_CPU": "cortex-a72"})
    assert "ds=nocloud;i=mas-edge-board-01-" in words.read_text()

    # The first boot.
    say("switching the board on")
    on_s = time.monotonic()
    board = switch_on(card, console)
    for what, sign in STEPS:
        wait(lambda sign=sign: re.search(sign, text(console)), board, console, LIMIT_S)
        say(f"{what}, {time.monotonic() - on_s:.0f} s after power-on")
    assert server.wait(600) == 0, text(state.with_suffix(".log"))

    # The report, and the same federation with the device on this machine.
    (row,) = (report := reported(state))["rounds"]
    assert set(row["energy_by_device"]) == {DEVICE}
    assert row["energy"]["measured"] == 0  # nothing measures on an emulated board, and nothing says so
    other, config = tmp_path / "other", tmp_path / "agent.toml"
    again = serve(other)
    url = f"mqtts://127.0.0.1:{port}"
    given = ["--out", config, "--url", url, "--state", other, "--data", fixtures / "data"]
    ours("broker_server", "enrol", DEVICE, *given)
    ours("edge_runtime", "run", "--config", config, "--meter", "none")
    assert again.wait(600) == 0, text(other.with_suffix(".log"))
    far = apart(report, reported(other))
    say(f"losses and affinities are within {far:.1e} of those of the same device on this machine")
    assert far <= 1e-4

    # A power cut, and what is then on the card.
    time.sleep(10)
    board.kill()
    board.wait()
    said = text(console)
    assert time_server, "the board asked nobody for the time"
    assert said.index("Initial clock synchronization") < said.index("device board-01 joins federation")
    assert "MAS-EDGE" not in run("mdir", "-i", f"{card}@@{8192 * 512}", "::/").upper()
    system = root_of(card, run)
    stat = run("debugfs", "-R", "stat /var/lib/mas-edge/agent.toml", system)
    assert re.search(r"Mode:\s+0600", stat)
    assert not re.search(r"User:\s+0\s", stat)
    unit = run("debugfs", "-R", "cat /etc/systemd/system/mas-edge.service", system)
    limit_mib = re.search(r"is set up: at most (\d+) of", said)[1]
    assert f"MemoryMax={limit_mib}M" in unit
    say(f"the board was left with MemoryMax={limit_mib}M; boot to report took {time.monotonic() - on_s:.0f} s")


def test_board_switched_off_ten_times_in_its_first_boot_ends_enrolled(
    run, flash, switch_on, serve, time_server, say, tmp_path
):
    """Switched off by killing it: what the board has not yet written to its card is lost, as when the power goes."""
    state, card = tmp_path / "state", tmp_path / "card.img"
    serve(state)
    flash(state, card)
    moments = random.Random(os.environ.get("MAS_EDGE_SEED", "1"))
    for number in range(10):
        console = tmp_path / f"console-{number}.log"
        board = switch_on(card, console)
        time.sleep(after_s := moments.uniform(5.0, 240.0))
        board.kill()
        board.wait()
        said = text(console)
        reached = [what for what, sign in STEPS if re.search(sign, said)]
        say(f"switched off {after_s:.0f} s after power-on: {reached[-1] if reached else 'the kernel had not begun'}")
    console = tmp_path / "console.log"
    board = switch_on(card, console)
    wait(lambda: re.search(JOINS, text(console)), board, console, LIMIT_S)
    say("it has joined")
    wait(lambda: re.search(r"round 1: done", text(console)), board, console, LIMIT_S)
    board.kill()
    board.wait()
    assert time_server
    system = root_of(card, run)
    assert re.search(r"^mas:x:\d+:", run("debugfs", "-R", "cat /etc/passwd", system), re.MULTILINE)
    wanted = run("debugfs", "-R", "ls -p /etc/systemd/system/multi-user.target.wants", system)
    assert "/mas-edge.service/" in wanted
    assert "mas-edge-install.service" not in wanted


def root_of(card, run):
    """The card's root file system, as the next boot finds it: its journal replayed."""
    system = card.with_name("system.img")
    skip_sectors = 8192 + BOOT_MIB * 2048
    run("dd", f"if={card}", f"of={system}", "bs=1M", f"skip={skip_sectors * 512}", "iflag=skip_bytes", "conv=sparse")
    subprocess.run(["/usr/sbin/e2fsck", "-p", system], check=False, capture_output=True)
    return system


def reported(state):
    return json.loads((state / "report" / "report.json").read_text())


def apart(*reports):
    """The largest difference between what two federations have measured; what was not measured is so in both."""

    def numbers(value):
        if isinstance(value, dict):
            return [number for each in value.values() for number in numbers(each)]
        return [number for each in value for number in numbers(each)] if isinstance(value, list) else [value]

    found = []
    for report in reports:
        losses = [report["test_loss"], [row["train_loss"] for row in report["rounds"]]]
        found.append(numbers([*losses, report["affinity"]["values"]]))
    one, other = found
    assert [each is None for each in one] == [each is None for each in other]
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None]
    assert len(pairs) > 10
    return max(abs(a - b) for a, b in pairs)


def text(log):
    return log.read_text(errors="replace")


def wait(happened, process, log, limit_s):
    """Until something has happened, while its process runs."""
    until_s = time.monotonic() + limit_s
    while not happened():
        assert process.poll() is None, f"it ended with {process.returncode}: {text(log)[-4000:]}"
        assert time.monotonic() < until_s, f"not within {limit_s:.0f} s: {text(log)[-4000:]}"
        time.sleep(1.0)
