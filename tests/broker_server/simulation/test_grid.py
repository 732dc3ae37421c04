from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.simulation.errors import SimulationFailed
from broker_server.simulation.experiment import Experiment
from broker_server.simulation.fleet import WorkCosts
from broker_server.simulation.grid import run_grid
from broker_server.simulation.output import write_json
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire.errors import BundleInvalid

BUNDLE = Path(__file__).parents[2] / "fixtures" / "bundle"
COSTS = WorkCosts(train_s=1.0, train_head_s={"depth": 1.0}, evaluate_s=1.0, evaluate_head_s={"depth": 1.0}, probe_s=1.0)


class Watched:
    """What was shown."""

    def __init__(self):
        self.runs, self.lines = None, []

    def begin(self, runs):
        self.runs = runs

    def step(self, run, text):
        self.lines.append((run, text))

    def done(self, run, summary):
        self.lines.append((run, summary.method))


class NoWork:
    """Workers that nobody may use."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was used")


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "data" / "attic" / "train").mkdir(parents=True)
    return Experiment(
        data=str(tmp_path / "data"),
        bundle=str(tmp_path / "bundle"),
        seeds=(3, 1),
        methods={"single +": {"strategy": "one_by_one"}, "MAS-2": {"strategy": "mas"}},
    )


def run(experiment, out, show):
    return run_grid(experiment, out, NoWork(), show, at_once=2)


def test_run_grid_does_nothing_again_that_has_finished(experiment, tmp_path, make_summary):
    out, show = tmp_path / "out", Watched()
    write_json(out / "costs.json", COSTS)
    for method, folder in (("single +", "single__"), ("MAS-2", "MAS-2")):
        for seed in experiment.seeds:
            write_json(out / "runs" / folder / str(seed) / "summary.json", make_summary(method, seed))
    found = run(experiment, out, show)
    order = [("single +", 1), ("single +", 3), ("MAS-2", 1), ("MAS-2", 3)]
    assert [(each.method, each.seed) for each in found] == order
    assert show.runs == len(show.lines) == 4
    kept = msgspec.json.decode((out / "summary.json").read_bytes())
    assert [(each["method"], each["seed"]) for each in kept] == order


def test_run_grid_refuses_a_wrong_method_before_any_run(experiment, tmp_path):
    wrong = msgspec.structs.replace(experiment, methods={**experiment.methods, "x": {"wings": 2}})
    with pytest.raises(ConfigInvalid, match="methods.x"):
        run(wrong, tmp_path / "out", Watched())
    assert not (tmp_path / "out").exists()


def test_run_grid_refuses_to_divide_a_model_without_a_stem_before_any_run(experiment, tmp_path):
    methods = {**experiment.methods, "far": {"strategy": "fedbone"}}
    whole = msgspec.structs.replace(experiment, methods=methods, bundle=str(BUNDLE))
    with pytest.raises(ConfigInvalid, match=r"methods\.far: split_learning.encoder: the model has no stem"):
        run(whole, tmp_path / "out", Watched())


def test_run_grid_says_that_there_is_no_bundle(experiment, tmp_path):
    with pytest.raises(BundleInvalid):
        run(experiment, tmp_path / "out", Watched())


@pytest.mark.process
def test_run_grid_says_that_a_model_cannot_be_compiled(experiment, tmp_path, capfd):
    lost = msgspec.structs.replace(experiment, bundle=None, model=str(tmp_path / "nowhere.py:build"))
    with pytest.raises(SimulationFailed, match="`python -m export compile` ended with exit code"):
        run(lost, tmp_path / "out", Watched())
    assert capfd.readouterr().err


def test_run_grid_names_data_that_the_bundle_was_not_compiled_for(experiment, tmp_path, monkeypatch):
    for split in ("train", "val", "test"):
        folder = tmp_path / "data" / "attic" / split
        folder.mkdir(exist_ok=True)
        np.save(folder / "image.npy", np.zeros((2, 3, 5, 5), np.uint8))
        np.save(folder / "depth.npy", np.zeros((2, 1, 5, 5), np.float32))
    facts = msgspec.structs.replace(experiment, bundle=str(BUNDLE))
    with ThreadPoolExecutor(1) as workers, pytest.raises(ConfigInvalid, match=r"data: .*attic.*compiled for"):
        run_grid(facts, tmp_path / "out", workers, Watched(), at_once=1)
