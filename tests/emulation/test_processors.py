"""Parity on other processors than this one: the engine runs emulated, PyTorch, which it is held to, here.

onnxruntime chooses its kernels by what the processor has, and each rounds in its own way: with SSE4.2 alone, with AVX2,
and with a Raspberry Pi's NEON. What PyTorch itself computes by changes with ATEN_CPU_CAPABILITY.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.graph_server import receive, send

pytestmark = [pytest.mark.emulated, pytest.mark.workstation]

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("graph_server.py")
X86 = {"sse4.2": "Nehalem", "avx2": "max"}
NAMES = ("mobilenet_v2", "resnet18", "unet", "vit", "xception")


class Emulated:
    """Runs graphs in a process that was started with a command; it takes the place of `export.parity`'s runner."""

    def __init__(self, command, environment):
        self._process = subprocess.Popen(
            [*map(str, command), str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, cwd=ROOT,
        )  # fmt: skip
        self._sent = set()

    def __call__(self, graph, inputs):
        digest = hashlib.sha256(graph).hexdigest()
        send(self._process.stdin, digest, inputs, b"" if digest in self._sent else graph)
        self._sent.add(digest)
        _, outputs, _ = receive(self._process.stdout)
        return outputs

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(60) == 0


@pytest.fixture(scope="module", params=[*X86, "neon"])
def processor(request, needs):
    """A runner on an emulated processor."""
    needs(qemu_user_static=["qemu-x86_64-static"])
    if request.param == "neon":
        command, environment = request.getfixturevalue("board_command")
    else:
        command, environment = ["qemu-x86_64-static", "-cpu", X86[request.param], sys.executable], {}
    runner = Emulated(command, environment)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def compiled():
    """Compiles an architecture, once for all processors."""
    torch = pytest.importorskip("torch")
    from architectures import ARCHITECTURES

    from export.compile import compile_model

    made = {}

    def compile_once(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = compile_model(ARCHITECTURES[name]())
        return made[name]

    return compile_once


@pytest.mark.parametrize("name", NAMES)
def test_graphs_compute_what_pytorch_does_on_another_processor(processor, compiled, name, say):
    from export.parity.check import TOLERANCE, check_parity

    found = check_parity(compiled(name), processor)
    say(f"{name}: {found.compared} tensors within {found.max_relative_error:.1e} ({found.worst})")
    assert found.max_relative_error <= TOLERANCE
