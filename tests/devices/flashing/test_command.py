import hashlib
import json
import lzma
import re
import resource
import shutil
import signal
import subprocess

import pytest
from root_files import system

from devices.__main__ import main
from devices.firstboot.cloudinit import EACH_BOOT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq8m0tqQ0p6zQ7m3w7zZJm4o0n0n0n0n0n0n0n0n0n0 me@laptop"


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "pi-01.img"


@pytest.fixture
def words(make_image, agent_toml, wheels, out, tmp_path):
    """The command line for one card, with changes; None takes a flag away."""
    (tmp_path / "key.pub").write_text(f"# mine\n{KEY}\n")
    (tmp_path / "secret").write_text("correct horse\n")

    def make(image=None, **changes):
        flags = {
            "board": "rpi5",
            "image": image or make_image(),
            "device-id": "pi-01",
            "server": "mqtts://server.lan:8883",
            "agent": agent_toml(),
            "wheels": wheels() if "wheels" not in changes else None,
            "ssh-key": tmp_path / "key.pub",
            "wifi": "my net; é",
            "wifi-password-file": tmp_path / "secret",
            "wifi-country": "DE",
            "to": out,
        }
        flags |= {name.replace("_", "-"): value for name, value in changes.items()}
        return ["flash", *(str(w) for n, v in flags.items() if v is not None for w in (f"--{n}", v))]

    return make


def read(fat, name):
    return subprocess.run(["mtype", "-i", fat, f"::/{name}"], stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.process
def test_flash_without_yes_shows_everything_secret_left_out_and_writes_nothing(words, out, capsys):
    assert main(words()) == 1
    said = capsys.readouterr().out
    assert "pi-01: Raspberry Pi 5\n" in said
    assert "  system   Debian GNU/Linux 13 (trixie), Raspberry Pi OS of 2025-12-04; aarch64, Python 3.13\n" in said
    assert "not compared: give --sha256" in said
    assert f"  to       {out} (a file)\n" in said
    assert "set up by cloud-init\n" in said
    assert "user     mas, who enters by 1 SSH key(s)\n" in said
    assert "Wi-Fi 'my net; é' (DE)\n" in said
    assert "pi-01 of home at mqtts://server.lan:8883; of the memory all but 400 MiB" in said
    assert said.endswith("nothing was written: the same command with --yes writes\n")
    assert "secret" not in said
    assert "horse" not in said
    assert list(out.parent.iterdir()) == []


@pytest.mark.process
def test_flash_trixie_puts_cloud_init_files_that_independent_tools_accept(
    words, out, fat_of, sound, make_image, tmp_path, agent_toml, capsys
):
    image = make_image(mib=40)
    packed = tmp_path / "raspios.img.xz"
    packed.write_bytes(lzma.compress(image.read_bytes(), preset=0))
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert main([*words(image=packed, sha256=digest, timezone="Europe/Berlin", ntp="server.lan"), "--yes"]) == 0
    assert capsys.readouterr().out.endswith("pi-01: written and read back\n")
    before, after = image.read_bytes(), out.read_bytes()
    assert len(after) == len(before)
    edge = (8192 * 512, 8192 * 512 + (40 << 20))
    assert (before[: edge[0]], before[edge[1] :]) == (after[: edge[0]], after[edge[1] :])
    fat = fat_of(out, mib=40)
    sound(fat)
    user = read(fat, "user-data")
    assert user.startswith(b"#cloud-config\n")
    config = json.loads(user.partition(b"\n")[2])
    assert config["hostname"] == "pi-01"
    assert config["users"][0]["ssh_authorized_keys"] == [KEY]
    assert config["bootcmd"] == [["sh", "-c", EACH_BOOT]]
    meta = json.loads(read(fat, "meta-data"))
    line = read(fat, "cmdline.txt").decode()
    assert f" ds=nocloud;i={meta['instance-id']}\n" in line
    assert "cgroup_enable=memory" in line
    assert "cfg80211.ieee80211_regdom=DE" in line
    network = json.loads(read(fat, "network-config"))["network"]
    assert network["wifis"]["wlan0"]["access-points"] == {"my net; é": {"password": "correct horse"}}
    assert read(fat, "mas-edge/agent.toml") == agent_toml().read_bytes()
    sums = read(fat, "mas-edge/SHA256SUMS").decode().splitlines()
    assert len(sums) == 6
    for entry in sums:
        digest, name = entry.split("  ")
        assert hashlib.sha256(read(fat, f"mas-edge/{name}")).hexdigest() == digest


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init is not installed here")
def test_flash_user_data_passes_cloud_init_s_schema(words, out, fat_of, tmp_path):
    assert main([*words(timezone="Europe/Berlin"), "--yes"]) == 0
    (tmp_path / "user-data").write_bytes(read(fat_of(out), "user-data"))
    done = subprocess.run(
        ["cloud-init", "schema", "-c", tmp_path / "user-data"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout


LEGACY = {
    "cmdline.txt": "console=tty1 root=PARTUUID=1-02 rootwait init=/usr/lib/raspberrypi-sys-mods/firstboot\n",
    "issue.txt": "Raspberry Pi reference 2026-09-15\n",
}
BOOKWORM = system("12 (bookworm)", python="3.11", cloud_init=False, raspberry_pi="2026-09-15")


@pytest.mark.process
def test_flash_bookworm_of_any_date_puts_firstrun_and_starts_it(words, out, fat_of, sound, make_image, wheels, capsys):
    image = make_image(LEGACY, root=BOOKWORM)
    assert main([*words(image=image, wheels=wheels("3.11")), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "Debian GNU/Linux 12 (bookworm), Raspberry Pi OS of 2026-09-15; aarch64, Python 3.11\n" in said
    assert "set up by firstrun\n" in said
    fat = fat_of(out)
    sound(fat)
    line = read(fat, "cmdline.txt").decode()
    assert "init=/usr/lib/raspberrypi-sys-mods/firstboot" in line
    assert " systemd.run=/boot/firmware/firstrun.sh systemd.run_success_action=reboot " in line
    script = read(fat, "firstrun.sh")
    assert subprocess.run(["sh", "-n"], input=script, check=False).returncode == 0
    assert b"install.sh" in script


@pytest.mark.process
def test_flash_puts_the_key_and_not_the_password_where_that_is_asked_for(words, out, fat_of):
    assert main([*words(), "--wifi-derive-key", "--yes"]) == 0
    psk = hashlib.pbkdf2_hmac("sha1", b"correct horse", "my net; é".encode(), 4096, 32).hex()
    assert psk in read(fat_of(out), "network-config").decode()
    assert b"correct horse" not in out.read_bytes()


@pytest.mark.process
def test_flash_gpt_image(words, out, make_image, fat_of):
    assert main([*words(image=make_image(kind="gpt")), "--yes"]) == 0
    assert b"cloud-config" in read(fat_of(out), "user-data")


REFUSALS = [
    ({"wifi_country": None}, 2, "Wi-Fi stays switched off without the country .* give --wifi-country"),
    ({"wifi_country": "Germany"}, 2, "'Germany' is no country"),
    ({"to": "board.img"}, 2, "board.img is the image itself"),
    (
        {"memory_budget": "9GiB", "board": "rpi4"},
        2,
        "of the 8192 MiB of the largest Raspberry Pi 4 Model B, 7842 MiB are",
    ),
    ({"memory_max_mib": "500", "board": "zero2w"}, 2, "pi-01 cannot have 500 MiB for its agent"),
    ({"wifi_password_file": None}, 2, "the password of 'my net; é' is needed"),
    ({"wifi_password_file": "short"}, 2, "must have 8 to 63 plain characters: it has 5"),
    ({"device_id": "pi-02"}, 2, "is for the device pi-01, not for pi-02"),
    ({"device_id": "../x"}, 2, "is for the device pi-01|device cannot be"),
    ({"server": "mqtts://other.lan:8883"}, 2, "is for the server mqtts://server.lan:8883, not mqtts://other.lan:8883"),
    ({"agent": None}, 2, "pi-01 needs a token: give --agent .* or --enrol"),
    ({"agent": "/nowhere/agent.toml"}, 2, "/nowhere/agent.toml cannot be read: No such file"),
    ({"board": "rpi6"}, 2, "there is no board 'rpi6'"),
    ({"board": "orin-nano"}, 2, "Jetson Orin Nano is not set up by a card"),
    ({"board": "x86-64"}, 2, "are for aarch64, not for an x86-64 computer"),
    ({"board": None}, 2, "pi-01 needs --board"),
    ({"to": None}, 2, "pi-01 needs --to"),
    ({"ssh_key": "secret"}, 2, "that is no public SSH key"),
    ({"timezone": "../../etc"}, 2, "timezone cannot be"),
    ({"ntp": "a b"}, 2, "ntp cannot be"),
    ({"user": "Root!"}, 2, "user cannot be"),
    ({"sha256": "a" * 63}, 2, "--sha256 is 64 hexadecimal digits, and 'a{63}' is not"),
    ({"sha256": "a" * 64}, 3, "has SHA-256 .*, not a{64}: download it again"),
    ({"image": "/nowhere.img"}, 3, "/nowhere.img cannot be read"),
    ({"to": "/dev/no-such-disk"}, 3, "there is no disk /dev/no-such-disk"),
    ({"to": "/nowhere/x.img"}, 3, "there is no folder /nowhere"),
    ({"wheels": "/nowhere"}, 3, "/nowhere holds no wheels for a board"),
]


@pytest.mark.process
@pytest.mark.parametrize(("changes", "code", "said"), REFUSALS, ids=[str(change) for change, _, _ in REFUSALS])
def test_flash_wrong_input_is_one_sentence_and_nothing_is_written(changes, code, said, words, out, tmp_path, capsys):
    (tmp_path / "short").write_text("12345")
    changes = {n: tmp_path / v if v in {"short", "secret", "board.img"} else v for n, v in changes.items()}
    assert main([*words(**changes), "--yes"]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(said, err), err
    assert list(out.parent.iterdir()) == []


@pytest.mark.process
def test_flash_wheels_for_another_python_than_the_image_s(words, wheels, out, capsys):
    assert main([*words(wheels=wheels("3.11")), "--yes"]) == 3
    said = capsys.readouterr().err
    assert "are for Python 3.11, and Debian GNU/Linux 13 (trixie) on this image has 3.13: make them with" in said
    assert "`python -m devices wheelhouse --board rpi5 --system trixie`" in said
    assert not out.exists()


@pytest.mark.process
def test_flash_truncated_xz(words, make_image, tmp_path, out, capsys):
    packed = tmp_path / "board.img.xz"
    whole = lzma.compress(make_image().read_bytes(), preset=0)
    packed.write_bytes(whole[: len(whole) * 9 // 10])
    out.write_text("before")
    assert main([*words(image=packed), "--yes"]) == 3
    assert "it is truncated, download it again" in capsys.readouterr().err
    assert out.read_text() == "before"


def test_flash_image_without_a_boot_partition(words, tmp_path, table, out, capsys):
    (tmp_path / "it.img").write_bytes(table["mbr"]((0x83, 2048, 8)).ljust(3 << 20, b"\0"))
    assert main([*words(image=tmp_path / "it.img"), "--yes"]) == 3
    assert "none of them is a FAT boot partition" in capsys.readouterr().err
    assert not out.exists()


UBUNTU = system("26.04 LTS", name="Ubuntu", python="3.14", raspberry_pi=None)
BULLSEYE = system("11 (bullseye)", python="3.9", cloud_init=False, boot_place="/boot")
RASPBIAN = system(name="Raspbian GNU/Linux", architecture="armhf")
ARMBIAN = system("25.8", name="Armbian", cloud_init=False, raspberry_pi=None)
REFUSED_IMAGES = [
    (BULLSEYE, "mounts its boot partition at /boot"),
    (RASPBIAN, "is 32-bit armhf, and the wheels are for aarch64"),
    (UBUNTU, "has 3.14: make them with"),
    (ARMBIAN, "start it as its maker says, and set it up by `python -m devices provision`"),
    ({"lost+found/x": ""}, "its root partition holds no system"),
    (b"hsqs".ljust(1 << 20, b"\0"), "its root partition has no ext4 file system"),
]


@pytest.mark.process
@pytest.mark.parametrize(("root", "said"), REFUSED_IMAGES, ids=[said for _, said in REFUSED_IMAGES])
def test_flash_image_that_cannot_be_set_up_is_refused_with_what_fits(words, make_image, root, said, out, capsys):
    assert main([*words(image=make_image(root=root)), "--yes"]) == 3
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.process
def test_flash_image_of_one_partition_is_refused(words, tmp_path, table, capsys):
    (tmp_path / "it.img").write_bytes(table["mbr"]((0x0C, 2048, 2048)).ljust(3 << 20, b"\0"))
    assert main([*words(image=tmp_path / "it.img"), "--yes"]) == 3
    assert "it has no root partition" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("folder", ["", "current/"])
def test_flash_ubuntu_s_command_line_where_it_is(words, make_image, wheels, out, fat_of, folder):
    files = {"config.txt": f"[all]\n{f'os_prefix={folder}' * bool(folder)}\n", "user-data": "", "meta-data": ""}
    image = make_image({**files, f"{folder}cmdline.txt": "console=tty1 root=LABEL=writable rootwait\n"}, root=UBUNTU)
    assert main([*words(image=image, wheels=wheels("3.14")), "--yes"]) == 0
    assert b" cgroup_enable=memory ds=nocloud;i=mas-edge-pi-01-" in read(fat_of(out), f"{folder}cmdline.txt")


@pytest.mark.process
def test_flash_a_mechanism_that_the_image_lacks_is_refused(words, make_image, capsys):
    assert main([*words(image=make_image(root=UBUNTU), first_boot="firstrun"), "--yes"]) == 3
    assert "is not set up by firstrun: cloud-init fits" in capsys.readouterr().err


@pytest.mark.process
def test_flash_firstrun_without_cmdline_is_refused(words, make_image, capsys):
    assert main([*words(image=make_image({"readme.txt": "x"}), first_boot="firstrun"), "--yes"]) == 3
    assert "has no cmdline.txt" in capsys.readouterr().err


@pytest.mark.process
def test_flash_cmdline_of_two_lines_is_refused(words, make_image, capsys):
    image = make_image({"cmdline.txt": "a\nb\n", "user-data": "", "meta-data": ""})
    assert main([*words(image=image), "--yes"]) == 3
    assert "cmdline.txt on the boot partition is not one line" in capsys.readouterr().err


@pytest.mark.process
def test_flash_boot_partition_too_full(words, make_image, out, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "image.npy").write_bytes(bytes(20_000_000))
    assert main([*words(image=make_image(mib=12), data=data), "--yes"]) == 3
    assert "MiB free, and the files need 20 MiB" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.process
def test_flash_takes_a_data_set_along(words, out, fat_of, tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/image.npy").write_bytes(b"numbers")
    assert main([*words(data=tmp_path / "data"), "--yes"]) == 0
    assert read(fat_of(out), "mas-edge/data/train/image.npy") == b"numbers"


@pytest.mark.process
def test_flash_empty_data_set_is_refused(words, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    assert main(words(data=tmp_path / "data")) == 2
    assert "has no files" in capsys.readouterr().err


@pytest.mark.process
def test_flash_disk_full_while_writing_leaves_what_was_there(words, out, capsys):
    """A limit on the size of files, which the kernel holds this process to, stands for a disk that fills up."""
    out.write_text("before")
    command = [*words(), "--yes"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (14 << 20, old[1]))
    try:
        assert main(command) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "File too large; " in (err := capsys.readouterr().err)
    assert err.endswith("is as it was before\n")
    assert out.read_text() == "before"
    assert [path.name for path in out.parent.iterdir()] == ["pi-01.img"]


@pytest.mark.process
def test_flash_without_room_for_a_copy_of_the_boot_partition_says_where(words, make_image, out, capsys):
    command = [*words(image=make_image(mib=12)), "--yes"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, old[1]))
    try:
        assert main(command) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    err = capsys.readouterr().err
    assert re.match(
        r"error: copies of the image's partitions cannot be written to \S+ \(File too large\), and the target", err
    )
    assert err.count("\n") == 1
    assert not out.exists()


FLEET = """
[defaults]
board = "rpi5"
image = "board.img"
wheels = "wheels"
server = "mqtts://server.lan:8883"

[[device]]
device = "pi-01"
agent = "1.toml"
to = "out/1.img"

[[device]]
device = "pi-02"
agent = "2.toml"
to = "out/2.img"
memory_max_mib = 300
"""


@pytest.fixture
def fleet(make_image, agent_toml, wheels, tmp_path):
    make_image()
    wheels()
    agent_toml("1.toml")
    agent_toml("2.toml", device="pi-02", token="another")
    (tmp_path / "out").mkdir()
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


@pytest.mark.process
def test_fleet_writes_each_device_its_own(fleet, tmp_path, fat_of, capsys):
    assert main(["flash", "--fleet", str(fleet), "--yes"]) == 0
    assert capsys.readouterr().out.count("written and read back") == 2
    first, second = fat_of(tmp_path / "out/1.img"), fat_of(tmp_path / "out/2.img")
    assert b"another" not in read(first, "mas-edge/agent.toml")
    assert b"another" in read(second, "mas-edge/agent.toml")
    assert b"MEMORY_MAX_MIB=300\n" in read(second, "mas-edge/settings")
    assert json.loads(read(first, "meta-data"))["instance-id"] != json.loads(read(second, "meta-data"))["instance-id"]


@pytest.mark.process
def test_fleet_only_one(fleet, tmp_path):
    assert main(["flash", "--fleet", str(fleet), "--only", "pi-02", "--yes"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["2.img"]


@pytest.mark.process
def test_fleet_flags_go_over_the_file(fleet, tmp_path, fat_of):
    assert main(["flash", "--fleet", str(fleet), "--only", "pi-02", "--memory-max-mib", "200", "--yes"]) == 0
    assert b"MEMORY_MAX_MIB=200\n" in read(fat_of(tmp_path / "out/2.img"), "mas-edge/settings")


@pytest.mark.process
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('agent = "2.toml"', 'agent = "1.toml"', "is for the device pi-01, not for pi-02"),
        ('device = "pi-02"', 'device = "pi-01"', "names pi-01 twice"),
        ('device = "pi-02"', 'device = "pi_01"', "pi-01 and pi_01 would both be the host pi-01: rename one"),
        ('device = "pi-02"\n', "", "each .* needs its name"),
        ("memory_max_mib = 300", "memory_max_mib = 3", "memory-max-mib cannot be 3"),
        ("memory_max_mib", "memory_maximum", "memory_maximum"),
        ("[defaults]", "[defaults", "cannot be used"),
        ("2.img", "1.img", "goes to the same place as a device before it: write it alone, with --only pi-02"),
    ],
)
def test_fleet_wrong_is_one_sentence(fleet, old, new, said, capsys, tmp_path):
    fleet.write_text(FLEET.replace(old, new))
    assert main(["flash", "--fleet", str(fleet), "--yes"]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err), err
    assert err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.process
def test_fleet_with_unknown_device_or_a_single_one(fleet, capsys):
    assert main(["flash", "--fleet", str(fleet), "--only", "pi-09"]) == 2
    assert "has no device pi-09" in capsys.readouterr().err
    assert main(["flash", "--fleet", str(fleet), "--device-id", "pi-01"]) == 2
    assert "use --only NAME" in capsys.readouterr().err
    assert main(["flash", "--fleet", "/nowhere.toml"]) == 2
    assert "/nowhere.toml cannot be read" in capsys.readouterr().err


@pytest.mark.process
def test_flash_with_a_memory_budget_limits_the_service_by_it(words, out, fat_of, agent_toml, capsys):
    assert main([*words(memory_budget="220MiB"), "--yes"]) == 0
    assert "of the memory 252 MiB" in capsys.readouterr().out
    fat = fat_of(out)
    assert read(fat, "mas-edge/agent.toml").startswith(b'memory_budget = "220MiB"\n')
    assert b"MEMORY_MAX_MIB=252\n" in read(fat, "mas-edge/settings")
    from_file = words(agent=agent_toml("own.toml", memory_budget="100MiB"), wheels=out.parent.parent / "wheels")
    assert main(from_file) == 1
    assert "of the memory 132 MiB" in capsys.readouterr().out
    assert main([*from_file, "--memory-max-mib", "200"]) == 1
    assert "of the memory 200 MiB" in capsys.readouterr().out
    assert main([*from_file, "--memory-max-mib", "100"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: --memory-max-mib 100 is too little for the memory budget of pi-01: its service needs 132 MiB\n"
    )


@pytest.mark.process
@pytest.mark.workstation
def test_flash_enrols_with_the_server_s_state(words, tmp_path, out, fat_of, capsys):
    pytest.importorskip("jwt")
    from broker_server.server.keys import load_or_create

    state = tmp_path / "server"
    assert main(words(agent=None, enrol=state)) == 2
    assert "is no server's state folder" in capsys.readouterr().err
    load_or_create(state)
    (tmp_path / "authority.pem").write_text("certificate")
    command = words(agent=None, enrol=state, ca=tmp_path / "authority.pem", wheels=tmp_path / "wheels")
    assert main([*command, "--yes"]) == 0
    fat = fat_of(out)
    assert b'ca_file = "ca.pem"' in read(fat, "mas-edge/agent.toml")
    assert read(fat, "mas-edge/ca.pem") == b"certificate"
