"""Linear models of related devices: over MQTT with real processes that are killed, and in simulation."""

import itertools
import shutil
import time

import msgspec
import numpy as np
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from edge_runtime.datasets.dataset import Dataset
from edge_runtime.datasets.feature_sets import divided, write
from edge_runtime.datasets.feature_sources import SOURCES
from edge_runtime.datasets.partition import Fractions
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.tensors import unpack

pytestmark = pytest.mark.workstation
NAMES = ("device-1", "device-2", "device-3")
ROUNDS = {"merged_rounds": 12, "split_rounds": 4}
KILLS = 3


class LinearBench:
    """A bench whose data are features, and whose bundle is a linear model."""

    def __init__(self, bench, kind, loss=None):
        self.bench, self.site, source = bench, bench.site, SOURCES[kind]
        made = bench.root / "made"
        tables = {name: source.read(None, 0, 0)[name] for name in NAMES}
        write(made, kind, source, divided(tables, Fractions(val=0.0, test=0.25), 0), loss or source.loss)
        shutil.rmtree(bench.root / "data")
        shutil.copytree(made / "devices", bench.root / "data")
        self.site.bundle, self.site.tasks = made / "bundle", (source.task,)

    def simulate(self, name, **settings):
        rows = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in settings.items())
        counts = "".join(f"grouping.{key} = {value}\n" for key, value in ROUNDS.items())
        self.bench.run(self.bench.experiment(f"[methods.{name}]\n{counts}{rows}"), name)
        folder = self.bench.root / name / "runs" / name / "7"
        return msgspec.json.decode((folder / "report.json").read_bytes()), self.weights(folder / "models")

    def weights(self, folder):
        """The group's weights and each device's, by name."""
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}

    def dense_error(self, shared, ridge, width):
        """The devices' mean RMSE by the mixed-effect estimator as it is written down: one system of all samples."""
        splits = {name: Dataset.open(self.bench.root / "data" / name) for name in NAMES}

        def samples(split):
            (x,) = split.inputs.values()
            (y,) = split.labels.values()
            return np.asarray(x, np.float64).reshape(len(y), -1), np.asarray(y, np.float64).ravel()

        def kernel(x, z, is_own):
            near = np.exp(-((x[:, None] - z[None]) ** 2).sum(2) / (2 * width**2))
            return shared * x @ z.T + (1 - shared) * near * is_own

        train, test = ([samples(getattr(each, name)) for each in splits.values()] for name in ("train", "test"))
        x, y = (np.concatenate(parts) for parts in zip(*train, strict=True))
        owner = np.repeat(range(len(train)), [len(labels) for _, labels in train])
        fitted = np.linalg.solve(kernel(x, x, owner[:, None] == owner) + ridge * np.eye(len(x)), y)
        errors = [
            np.sqrt(np.mean((kernel(inputs, x, owner == number) @ fitted - labels) ** 2))
            for number, (inputs, labels) in enumerate(test)
        ]
        return np.average(errors, weights=[len(labels) for _, labels in test])

    def device(self, name):
        config = self.site.enrol(name, data=str(self.bench.root / "data" / name))
        return self.site.run(f"device-{name}", "edge_runtime", "run", "--config", config)


@pytest.fixture
def related(bench):
    return LinearBench(bench, "related")


def test_killed_processes_over_mqtt_end_where_a_simulation_does_with_a_certificate(related):
    expected, weights = related.simulate(
        "mocha", **{"grouping.strategy": "mocha", "linear.relation_rounds": 6, "linear.passes": 2.0}
    )
    site = related.site
    server = site.serve(
        min_devices=3, strategy="mocha", linear_relation_rounds=6, linear_passes=2.0, grace_s=60, **ROUNDS
    )
    devices = [related.device(name) for name in NAMES]
    site.until(server, "device-3 has joined")
    for victim in itertools.islice(itertools.cycle([devices[0], server, devices[1]]), KILLS):
        time.sleep(0.4)
        victim.again()
    site.ends(server, *devices)
    assert related.weights(site.state / "report" / "models") == weights
    assert sorted(weights) == ["label.safetensors", *(f"label/{name}.safetensors" for name in NAMES)]
    page = (site.state / "report" / "report.html").read_text(encoding="utf-8")
    assert "Three devices trained one task with linear models for 18 rounds." in page
    assert "Objective and duality gap" in page
    rounds = site.report()["rounds"]
    measured = [row["linear"] for row in rounds]
    assert measured == [row["linear"] for row in expected["rounds"]]
    gaps = [each["gap"] for each in measured]
    assert min(gaps) >= 0
    assert gaps[-1] < 0.01 * gaps[0]
    assert measured[0]["steps"] == measured[-1]["steps"] == dict.fromkeys(NAMES, 0)
    assert set(measured[1]["steps"].values()) == {180}
    manifest = read_folder(site.bundle)
    columns = [unpack(manifest.table, weights[f"label/{name}.safetensors"]) for name in NAMES]
    np.testing.assert_allclose(unpack(manifest.table, weights["label.safetensors"]), np.mean(columns, 0), atol=1e-6)
    assert site.report()["test_metrics"]["end"]["label"]["value"] > 0.7


@pytest.mark.long
def test_relations_that_are_learned_lower_the_loss_of_related_devices(related):
    alone, _ = related.simulate("alone", **{"grouping.strategy": "dmtrl", "linear.relation_rounds": 0})
    together, _ = related.simulate("together", **{"grouping.strategy": "dmtrl", "linear.relation_rounds": 4})
    assert together["rounds"][-1]["linear"]["objective"] < alone["rounds"][-1]["linear"]["objective"]
    assert alone["rounds"][-1]["linear"]["gap"] < 0.02


def test_amtl_hears_devices_as_they_come_and_goes_on_after_kills(bench):
    values = LinearBench(bench, "values")
    site = values.site
    server = site.serve(
        min_devices=3, strategy="amtl", round_mode="buffered", buffer_size=1, max_staleness=6, linear_ridge=1.0,
        merged_rounds=30, split_rounds=15,
    )  # fmt: skip
    devices = [values.device(name) for name in NAMES]
    site.until(server, "device-3 has joined")
    for victim in (devices[0], server):
        time.sleep(0.3)
        victim.again()
    site.ends(server, *devices)
    report = site.report()
    assert [len(row["clients"]) for row in report["rounds"]] == [1] * 45
    assert {name for row in report["rounds"] for name in row["clients"]} == set(NAMES)
    assert len(values.weights(site.state / "report" / "models")) == 4
    assert report["test_metrics"]["end"]["value"]["value"] < 1.6


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["proximal_mtl", "mixed_effect"])
def test_other_rules_over_mqtt_end_where_a_simulation_does(bench, strategy):
    values = LinearBench(bench, "values")
    expected, weights = values.simulate(strategy, **{"grouping.strategy": strategy, "linear.ridge": 1.0})
    site = values.site
    server = site.serve(min_devices=3, strategy=strategy, linear_ridge=1.0, **ROUNDS)
    devices = [values.device(name) for name in NAMES]
    site.ends(server, *devices)
    assert values.weights(site.state / "report" / "models") == weights
    report = site.report()
    assert report["test_metrics"] == expected["test_metrics"]
    objectives = [row["linear"]["objective"] for row in report["rounds"]]
    if strategy == "mixed_effect":
        assert objectives == [None]
        error = values.dense_error(shared=0.5, ridge=1.0, width=1.0)
        assert report["test_metrics"]["end"]["value"]["value"] == pytest.approx(error, rel=1e-4)
    else:
        assert objectives == sorted(objectives, reverse=True)
        assert len(objectives) == 17
