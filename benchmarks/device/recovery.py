"""Recovery: training that is killed again and again, and whether it ends with the bits of training that was not.

The process is real and so is SIGKILL, at random moments; the model is the tiny one of the tests, because what is
counted is kills, and its steps are slowed so that they are hit.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.measure import ROOT, WORK
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.blob import describe
from edge_runtime.wire.messages import Plan, Training

KILLS = 100
FIXTURES = ROOT / "tests" / "fixtures"
PAUSE_S = 0.05
STEPS_AN_EPOCH = 3


def measure() -> dict[str, Any]:
    """Kill rounds until they end, and start new ones until the number of kills is reached."""
    folder = WORK / "recovery"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    kills = different = rounds = 0
    started_s = time.monotonic()
    while kills < KILLS:
        rounds += 1
        plan = folder / "plan.json"
        plan.write_bytes(msgspec.json.encode(_plan(seed=rounds)))
        undisturbed = _round(folder, f"{rounds}-alone", plan, 0.0)
        undisturbed.communicate()
        process = _round(folder, f"{rounds}-killed", plan, PAUSE_S)
        while process.stdout is not None and process.stdout.readline():
            time.sleep(random.uniform(0, 4 * PAUSE_S))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            process = _round(folder, f"{rounds}-killed", plan, PAUSE_S)
        process.communicate()
        alone, killed = (folder / f"{rounds}-{kind}.out" for kind in ("alone", "killed"))
        different += alone.read_bytes() != killed.read_bytes()
        print(f"{rounds} rounds, {kills} kills, {different} different", flush=True)
    return {
        "kills": kills,
        "rounds": rounds,
        "steps_a_round": _plan(seed=0).training.epochs * STEPS_AN_EPOCH,  # type: ignore[union-attr]
        "rounds_that_ended_otherwise": different,
        "wall_s": round(time.monotonic() - started_s),
    }


def document(result: dict[str, Any]) -> str:
    """The sentence."""
    kills, rounds, different = (result[name] for name in ("kills", "rounds", "rounds_that_ended_otherwise"))
    return f"""## Power cuts: `python -m benchmarks.device recovery`

{rounds} rounds of {result["steps_a_round"]} steps of the tests' tiny model, with a checkpoint after every step: their
process was killed (SIGKILL) {kills} times at random moments and started again. **{different}** rounds ended with other
weights, losses or affinities than the same round undisturbed, bit for bit.
"""


def _plan(seed: int) -> Plan:
    manifest = bundle_folder.read_folder(FIXTURES / "bundle")
    blob = describe(b"weights")
    training = Training(
        epochs=12, first_epoch=0, batch=4, lr=0.02, momentum=0.9, weight_decay=0.01, seed=seed, probe_every=5
    )
    return Plan(
        work="train",
        round=1,
        phase="merged",
        group="+".join(manifest.task_names),
        tasks=manifest.task_names,
        bundle=blob,
        signature="0" * 128,
        weights=blob,
        training=training,
        data_split=None,
        deadline_s=600.0,
    )


def _round(folder: Path, name: str, plan: Path, pause_s: float) -> subprocess.Popen[str]:
    arguments = [FIXTURES / "bundle", FIXTURES / "data", folder / name, plan, folder / f"{name}.out", pause_s]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.device.round", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
