import pytest

from devices.detection import detect, match
from devices.profile import load_all


@pytest.fixture
def tree(board):
    """Writes a device tree as the kernel shows it: strings that end with a zero byte."""

    def write(model, *compatible):
        folder = board.root / "proc/device-tree"
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(model.encode() + b"\0")
        (folder / "compatible").write_bytes(b"".join(name.encode() + b"\0" for name in compatible))

    return write


@pytest.mark.parametrize(
    ("name", "compatible"),
    [
        ("rpi3bplus", ("raspberrypi,3-model-b-plus", "brcm,bcm2837")),
        ("rpi3aplus", ("raspberrypi,3-model-a-plus", "brcm,bcm2837")),
        ("rpi3b", ("raspberrypi,3-model-b", "brcm,bcm2837")),
        ("cm3", ("raspberrypi,3-compute-module", "brcm,bcm2837")),
        ("rpi4", ("raspberrypi,4-model-b", "brcm,bcm2711")),
        ("rpi4", ("raspberrypi,4-compute-module", "brcm,bcm2711")),
        ("cm4s", ("raspberrypi,4-compute-module-s", "brcm,bcm2711")),
        ("rpi5", ("raspberrypi,5-compute-module", "brcm,bcm2712")),
        ("rpi5", ("raspberrypi,500", "brcm,bcm2712")),
        ("tx2", ("nvidia,p2597-0000+p3310-1000", "nvidia,lightning", "nvidia,tegra186")),
        ("tx2", ("nvidia,p3509-0000+p3636-0001", "nvidia,tegra186")),
        ("agx-xavier", ("nvidia,p2972-0000", "nvidia,tegra194")),
        ("agx-orin", ("nvidia,p3740-0002+p3701-0008", "nvidia,p3701-0008", "nvidia,tegra234")),
        ("agx-thor", ("nvidia,p3971-0080+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264")),
        ("rpi5", ("raspberrypi,5-model-b", "brcm,bcm2712")),
        ("zero2w", ("raspberrypi,model-zero-2-w", "brcm,bcm2837")),
        ("jetson-nano", ("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210")),
        ("jetson-nano", ("nvidia,p3541-0000", "nvidia,p3450-0000", "nvidia,tegra210")),
        ("xavier-nx", ("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194")),
        ("orin-nano", ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")),
        ("orin-nx", ("nvidia,p3768-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234")),
        ("agx-orin", ("nvidia,p3737-0000+p3701-0000", "nvidia,tegra234")),
        ("aarch64", ("pine64,rock64", "rockchip,rk3328")),
    ],
)
def test_detect_by_device_tree(board, tree, name, compatible):
    tree("a model", *compatible)
    found = detect(load_all(), board.root, "aarch64")
    assert found.profile is not None
    assert found.profile.name == name
    assert (found.model, found.compatible) == ("a model", compatible)


def test_detect_pc_by_dmi(board):
    board.write("sys/class/dmi/id", sys_vendor="Dell Inc.", product_name="OptiPlex 7010")
    board.write("proc", meminfo="MemTotal:       16296248 kB\nMemFree: 1 kB")
    board.write("etc", **{"os-release": 'NAME=x\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"'})
    for n in range(4):
        board.write(f"sys/devices/system/cpu/cpu{n}", online=1)
    board.write("sys/devices/system/cpu/cpufreq", boost=1)
    found = detect(load_all(), board.root, "x86_64")
    assert found.profile is not None
    assert found.profile.name == "x86-64"
    assert (found.model, found.memory_mib, found.cores) == ("Dell Inc. OptiPlex 7010", 15914, 4)
    assert (found.system, found.python) == ("Debian GNU/Linux 13 (trixie)", None)


def test_detect_nothing_known_is_none(board):
    found = detect(load_all(), board.root, "riscv64")
    assert (found.profile, found.model, found.memory_mib, found.cores, found.system) == (None,) * 5
    assert found.compatible == ()


def test_detect_the_machine_it_runs_on():
    found = detect(load_all())
    assert found.cores
    assert found.python


def test_match_takes_the_most_particular_name():
    profile = match(load_all(), ("raspberrypi,4-model-b", "raspberrypi,3-model-b-plus"), "aarch64")
    assert profile is not None
    assert profile.name == "rpi4"


@pytest.mark.parametrize(("machine", "name"), [("AMD64", "x86-64"), ("arm64", "aarch64"), ("armv7l", None)])
def test_match_by_the_processor(machine, name):
    profile = match(load_all(), (), machine)
    assert (profile and profile.name) == name


def test_detect_hostile_device_tree_is_read_in_part(board, tree):
    tree("x" * 10_000, *(["nvidia," + "9" * 100] * 200), "raspberrypi,5-model-b")
    found = detect(load_all(), board.root, "aarch64")
    assert found.profile is not None
    assert found.profile.name == "aarch64"
    assert len(found.model) == 4096
