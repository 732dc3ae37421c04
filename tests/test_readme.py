"""What the README says about a model of one's own, done as it says it: on a workstation, and on a board."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edge_runtime.wire import bundle_folder
from edge_runtime.wire.tensors import unpack

pytestmark = [pytest.mark.process, pytest.mark.workstation]
ROOT = Path(__file__).parents[1]
BOARD = ROOT / ".venv-board" / "bin" / "python"
README = (ROOT / "README.md").read_text()
SECTION = README[README.index("### A model of your own") :].partition("\n### ")[0]


BLOCKS = dict(re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL))


@pytest.fixture
def follow(tmp_path):
    """Does a line of the README in a folder beside the project's docs; what is for a board, without PyTorch."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")

    def run(line):
        words = shlex.split(line, comments=True)
        assert words[0] == "python"
        python = str(BOARD) if "on a board" in line else sys.executable
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [python, *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    return run


@pytest.mark.skipif(not BOARD.is_file(), reason="needs a board's environment: make venv-board")
def test_unet_in_one_file_trains_on_a_board_by_the_readme_alone(follow, tmp_path):
    lines = BLOCKS[""].splitlines()
    assert [line for line in lines if "on a board" in line and " train " in line]
    assert follow('python -c "import torch"  # on a board').returncode != 0
    for line in lines:
        done = follow(line)
        assert done.returncode == 0, (line, done.stderr[-2000:])
    manifest = bundle_folder.read_folder(tmp_path / "bundle")
    assert manifest.task_names == ("depth", "segmentation")
    assert len(manifest.representation) == 4
    assert any(tensor.part.startswith("state.encoder") for tensor in manifest.tensors)
    before = unpack(manifest.table, (tmp_path / "bundle" / bundle_folder.WEIGHTS).read_bytes())
    after = unpack(manifest.table, (tmp_path / "trained.safetensors").read_bytes())
    moved = {tensor.part for tensor in manifest.tensors if (before != after)[tensor.offset]}
    assert moved == set(manifest.table.parts)
    assert (tmp_path / "unet.onnx").is_file()


def test_model_in_the_readme_itself_compiles(follow, tmp_path):
    (tmp_path / "my_model.py").write_text(BLOCKS["python"])
    done = follow("python -m export compile my_model.py:build --out bundle")
    assert done.returncode == 0, done.stderr[-2000:]
