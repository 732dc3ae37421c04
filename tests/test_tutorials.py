"""The tutorials, done word by word in an empty folder beside the project's documents."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("jwt")

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
QUICK = ("energy", "own_model")
LIMIT_S = 300
BLOCK = re.compile(r"(?:<!-- test: (?P<how>.*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
IN_THE_BACKGROUND, AT_THE_END = "in the background", "when the server has ended"

pytestmark = [pytest.mark.workstation, pytest.mark.process]


def named(path):
    return pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.long)


@pytest.mark.parametrize("path", [*map(named, TUTORIALS)])
def test_tutorial_runs_word_by_word(path, tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": programs, "PYTHONPATH": str(ROOT)}
    started = []
    try:
        for block in BLOCK.finditer(path.read_text()):
            text = block["text"]
            if block["kind"] != "sh":
                name = re.match(r"# (\S+\.(?:py|toml))\n", text)[1]
                (tmp_path / name).write_text(text)
                continue
            if block["how"] == IN_THE_BACKGROUND:
                with (tmp_path / f"log-{len(started)}.txt").open("w") as log:
                    command = ["bash", "-c", f"exec {text}"]
                    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
                started.append(process)
                continue
            if block["how"] == AT_THE_END:
                assert started[0].wait(LIMIT_S) == 0, (tmp_path / "log-0.txt").read_text()[-2000:]
            command = ["bash", "-ec", text]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
            assert done.returncode == 0, (text, done.stderr[-2000:])
    finally:
        for process in started:
            process.terminate()
            process.wait()
