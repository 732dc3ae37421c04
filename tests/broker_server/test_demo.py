"""The demo as a user starts it, on tiny data: a process with all that it starts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("torch")

import onnxruntime

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
LIMIT_S = 180.0
OK, FAILED, STOPPED = 0, 5, 130


class Demo:
    """One run of the demo; what it says is in a file."""

    def __init__(self, root, *flags, merged=2):
        self.out, self.log = root / "out", root / f"demo-{time.monotonic_ns()}.log"
        command = [
            sys.executable, "-m", "broker_server", "demo", "--out", self.out, "--data", root / "data",
            "--model", f"{FIXTURES / 'make_bundle.py'}:build", "--merged-rounds", merged, "--split-rounds", 1,
            "--quiet", *flags,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=root,
                stdout=log,
                stderr=log,
            )

    @property
    def said(self):
        return self.log.read_text()

    def until(self, is_so):
        until_s = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < until_s, self.said[-3000:]
            assert self.process.poll() is None, self.said[-3000:]
            time.sleep(0.05)

    def wait(self):
        return self.process.wait(LIMIT_S)

    def alive(self):
        """The processes that the demo has started and that still run: all of them know its folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(self.out).encode() in path.read_bytes() and int(path.parent.name) != self.process.pid:
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


@pytest.fixture
def make_demo(tmp_path):
    for name in ("attic", "cellar"):
        shutil.copytree(FIXTURES / "data", tmp_path / "data" / name)
    demos = []
    # A shell that runs the tests in the background has its children ignore Ctrl-C, and theirs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def make(*flags, compiled=True, **settings):
        if compiled and not (tmp_path / "out").exists():
            shutil.copytree(FIXTURES / "bundle", tmp_path / "out" / "bundle")
        demos.append(Demo(tmp_path, *flags, **settings))
        return demos[-1]

    yield make
    signal.signal(signal.SIGINT, before)
    for demo in demos:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.wait()
        for number in demo.alive():
            os.kill(number, signal.SIGKILL)


def check(out):
    report = json.loads((out / "report.json").read_text())
    assert (out / "report.html").stat().st_size > 10_000
    groups = ["+".join(group) for group in report["split"]["groups"]]
    assert len(groups) == 2
    for name in groups:
        model = onnxruntime.InferenceSession(out / "models" / f"{name}.onnx")
        assert sorted(output.name for output in model.get_outputs()) == name.split("+")
    assert {"before", "merged", "end"} == set(report["test_loss"])
    assert report["energy"]["total"]["estimated"]
    assert report["energy"]["total"]["energy_j"] > 0
    return report


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_demo_from_a_model_to_a_report_with_its_port_in_use(make_demo):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = make_demo("--port", port, compiled=False)
        assert demo.wait() == OK, demo.said[-3000:]
    assert f"port {port} is in use" in demo.said
    assert "Traceback" not in demo.said
    assert demo.alive() == []
    assert [row["clients"] for row in check(demo.out)["rounds"]] == [["attic", "cellar"]] * 4


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_demo_stopped_in_the_middle_leaves_nobody_and_goes_on_later(make_demo, number):
    demo = make_demo("--port", 0, merged=20)
    demo.until(lambda: "round   2" in demo.said)
    assert len(demo.alive()) == 3
    demo.process.send_signal(number)
    assert demo.wait() == STOPPED, demo.said[-3000:]
    assert "the same command goes on" in demo.said
    assert "Traceback" not in demo.said
    assert demo.alive() == []
    again = make_demo("--port", 0, merged=20)
    assert again.wait() == OK, again.said[-3000:]
    assert "round   1 " not in again.said
    assert len(check(again.out)["rounds"]) == 22


@pytest.mark.process
def test_demo_with_a_device_that_cannot_take_part_ends_and_says_which(make_demo, tmp_path):
    demo_data = tmp_path / "data" / "cellar" / "train" / "depth.npy"
    demo_data.write_bytes(demo_data.read_bytes()[:100])
    demo = make_demo("--port", 0)
    assert demo.wait() == FAILED, demo.said[-3000:]
    assert "error: device cellar ended with exit code 3: see " in demo.said
    assert "depth.npy" in (demo.out / "devices" / "cellar" / "log.txt").read_text()
    assert demo.alive() == []


@pytest.mark.process
def test_demo_without_data_sets(make_demo, tmp_path):
    shutil.rmtree(tmp_path / "data")
    demo = make_demo()
    assert demo.wait() == FAILED
    assert "holds no data sets" in demo.said
