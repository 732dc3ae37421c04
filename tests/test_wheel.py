"""The built wheel does in an empty folder what the source tree does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.cli.program import SCRIPTS

pytestmark = [pytest.mark.workstation, pytest.mark.long]
ROOT = Path(__file__).parents[1]
LIMIT_S = 600


def test_demo_of_the_installed_wheel_runs_in_an_empty_folder(tmp_path):
    wheels, site, folder = (tmp_path / name for name in ("wheels", "site", "empty"))
    folder.mkdir()
    pip = [sys.executable, "-m", "pip"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run([*pip, "wheel", *options, str(ROOT)], check=True, timeout=LIMIT_S)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True)
    assert {path.name for path in (site / "bin").iterdir()} >= set(SCRIPTS.values())
    done = subprocess.run(
        [
            site / "bin" / "mas-edge-server",
            "demo",
            "--quiet",
            "--port",
            "0",
            "--merged-rounds",
            "1",
            "--split-rounds",
            "1",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "demo" / "report.html").is_file()
    assert list((folder / "runs" / "demo" / "models").glob("*.onnx"))
