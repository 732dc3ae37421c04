import hashlib
import json
import os
import zipfile

import pytest


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


AGENT = """\
device = "pi-01"
federation = "home"
url = "mqtts://server.lan:8883"
token = "eyJhbGciOiJFZERTQSJ9.secret.signature"
server_key = "9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c"
data = "data"
state = "state"
"""


@pytest.fixture
def agent_toml(tmp_path):
    """A device's configuration as the server's enrolment writes it."""

    def write(name="agent.toml", **changes):
        lines = dict(line.split(" = ", 1) for line in AGENT.splitlines())
        lines |= {key: f'"{value}"' for key, value in changes.items()}
        path = tmp_path / name
        path.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        return path

    return write


def write_wheel(folder, name, version="1.0", *, requires=(), modules=()):
    """A wheel with nothing much in it."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name.replace('_', '-')}", f"Version: {version}"]
    lines += ["Provides-Extra: board"] * (name == "mas_edge") + [f"Requires-Dist: {need}" for need in requires]
    files = {f"{info}/METADATA": "\n".join(lines) + "\n"}
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files |= dict(modules or {f"{name}/__init__.py": ""})
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def wheel():
    """Writes small wheels."""
    return write_wheel


@pytest.fixture
def wheels(tmp_path):
    """A folder of wheels for a board, as `wheelhouse` leaves it."""

    def make(python="3.13", architecture="aarch64", name="wheels"):
        folder = tmp_path / name
        folder.mkdir()
        for package in ("mas_edge", "numpy", "pip"):
            write_wheel(folder, package)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.whl"))}
        manifest = {"python": python, "architecture": architecture, "glibc": "2.41", "files": files}
        (folder / "wheelhouse.json").write_text(json.dumps(manifest))
        return folder

    return make
