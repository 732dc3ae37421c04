"""What every test shares: which tests need a workstation, and how long a property may take."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Property tests judge behaviour, never time: the machine may be a busy one.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

HERE = Path(__file__).parent
ON_A_BOARD = importlib.util.find_spec("torch") is None
# A board runs the runtime alone.
collect_ignore = ["broker_server", "export", "federation"] if ON_A_BOARD else []


BY_FOLDER = {
    "federation": ("process",),
    "emulation": ("process",),
    "export": ("slow", "no_cover"),
    "export/architectures": ("slow", "no_cover"),
    "export/lowering": ("slow", "no_cover"),
    "export/memory": ("slow",),
    "export/ort_training": ("slow", "no_cover"),
    "export/parity": ("slow", "no_cover"),
}
"""Markers that all tests of a folder have. Watching branches would slow PyTorch's tracing by half, and no code that is
held to all its branches is tested there."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder; skip, where torch is absent, what is marked for a workstation."""
    for item in items:
        folder = item.path.parent.relative_to(HERE).as_posix()
        for marker in BY_FOLDER.get(folder, ()):
            item.add_marker(marker)
    if not ON_A_BOARD:
        return
    skip = pytest.mark.skip(reason="needs a workstation: torch is not installed here")
    for item in items:
        if item.get_closest_marker("workstation"):
            item.add_marker(skip)


STARTS = {"os.fork", "os.posix_spawn", "subprocess.Popen"}
started: list[str] = []
"""What the test that is running has started, by Python's audit events."""
sys.addaudithook(lambda event, _: started.append(event) if event in STARTS else None)


def watched(item: pytest.Item) -> object:
    """In make check, fail a test that starts a process: it lacks the marker `process`."""
    started.clear()
    result = yield
    if started and "not process" in item.config.option.markexpr:
        pytest.fail(f"it starts a process ({started[0]}): mark it with @pytest.mark.process")
    return result


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(watched)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(watched)


class Board:
    """A file system that stands for a board."""

    def __init__(self, root):
        self.root = root

    def write(self, folder, **files):
        """Files of a folder; a name may have `__` for a dot or a colon that Python would not take."""
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name).write_text(f"{text}\n")
        return path

    def rapl(self, number, name, energy_uj, range_uj=262143328850):
        folder = f"sys/class/powercap/intel-rapl:{number}"
        return self.write(folder, name=name, energy_uj=energy_uj, max_energy_range_uj=range_uj)

    def hwmon(self, number, name, **files):
        return self.write(f"sys/class/hwmon/hwmon{number}", name=name, **files)

    def vcgencmd(self, script):
        """A program in place of vcgencmd: the lines of a shell's case over what it is asked."""
        path = self.root / "usr/bin/vcgencmd"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\ncase "$1" in\n{script}\nesac\n')
        path.chmod(0o755)
        return path


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


@pytest.fixture
def open_files():
    """How many files this process holds open."""
    return lambda: len(os.listdir("/proc/self/fd"))  # noqa: PTH208


PMIC_LONG = """\
 3V7_WL_SW_A current(0)=0.00195186A
   3V3_SYS_A current(1)=0.12687090A
  DDR_VDDQ_A current(4)=0.00000000A
  VDD_CORE_A current(7)=1.91102000A
      HDMI_A current(22)=0.02551890A
 3V7_WL_SW_V volt(8)=3.70720000V
   3V3_SYS_V volt(9)=3.32580900V
  DDR_VDDQ_V volt(12)=0.60329610V
  VDD_CORE_V volt(15)=0.87355220V
      HDMI_V volt(23)=5.11746000V
     EXT5V_V volt(24)=5.14158000V
      BATT_V volt(25)=3.28033900V
"""
PMIC_SHORT = """\
3V7_WL_SW_A=0.00195186A
3V3_SYS_A=0.12687090A
DDR_VDDQ_A=0.00000000A
VDD_CORE_A=1.91102000A
HDMI_A=0.02551890A
3V7_WL_SW_V=3.70720000V
3V3_SYS_V=3.32580900V
DDR_VDDQ_V=0.60329610V
VDD_CORE_V=0.87355220V
HDMI_V=5.11746000V
EXT5V_V=5.14158000V
BATT_V=3.28033900V
"""


@pytest.fixture(params=[PMIC_LONG, PMIC_SHORT], ids=["long", "short"])
def pmic_text(request):
    return request.param


@pytest.fixture
def pmic_w():
    """Power of the rails in both."""
    return 0.00195186 * 3.7072 + 0.1268709 * 3.325809 + 0.0 * 0.6032961 + 1.91102 * 0.8735522 + 0.0255189 * 5.11746
