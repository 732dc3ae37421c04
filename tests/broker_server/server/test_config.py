from pathlib import Path

import pytest

from broker_server.aggregation.encoder import Aggregation
from broker_server.aggregation.server_optimizer import ServerOptimizer
from broker_server.grouping.search import SplitImpossible
from broker_server.server.config import ConfigInvalid, ServerConfig
from broker_server.server.config_file import TABLES, read
from edge_runtime.wire.manifest import read_folder
from edge_runtime.wire.training import FixedWeighting, GradNormWeighting, UncertaintyWeighting

BUNDLE = Path(__file__).parents[2] / "fixtures" / "bundle"


def test_config_strategy_for_too_few_tasks():
    with pytest.raises(SplitImpossible):
        ServerConfig(groups=3).planner(("a", "b"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tasks": ("depth", "smell")}, "tasks: the bundle has no 'smell'; it has depth, normals, segmentation"),
        ({"tasks": ("depth", "normals"), "task_weights": {"segmentation": 2.0}}, "task_weights: 'segmentation' is not"),
    ],
)
def test_terms_of_tasks_that_the_bundle_does_not_have(settings, why):
    with pytest.raises(ConfigInvalid, match=why):
        ServerConfig(**settings).terms(read_folder(BUNDLE))


def test_terms_are_of_all_tasks_where_none_is_named():
    assert ServerConfig().terms(read_folder(BUNDLE)).tasks == ("depth", "normals", "segmentation")
    assert ServerConfig(tasks=("depth", "normals")).terms(read_folder(BUNDLE)).tasks == ("depth", "normals")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"task_weights": {"a": 2.0}}, FixedWeighting(weights={"a": 2.0})),
        ({"weighting": "gradnorm", "gradnorm_alpha": 0.5}, GradNormWeighting(alpha=0.5)),
        ({"weighting": "uncertainty", "weighting_lr": 0.5}, UncertaintyWeighting(lr=0.5)),
    ],
)
def test_config_weighting(keys, expected):
    assert read(None, **keys).training.weighting == expected


def test_config_merging(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text("[training]\nmerging = 'cagrad'\ncagrad_c = 0.2\n")
    assert (read(path).training.gradient_combination, read(path).training.cagrad_c) == ("cagrad", 0.2)
    assert ServerConfig().training.gradient_combination == "sum"
    with pytest.raises(ConfigInvalid, match="merging"):
        read(None, merging="mean")
    with pytest.raises(ConfigInvalid, match="cagrad_c"):
        read(None, cagrad_c=1.0)


def test_config_aggregation(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('aggregation = "cagrad"\ncagrad_c = 0.2\nserver_optimizer = "adam"\nserver_lr = 0.01\n')
    found = read(path, server_momentum=0.9).combining
    step = ServerOptimizer(method="adam", lr=0.01, momentum=0.9)
    assert found == Aggregation(rule="cagrad", optimizer=step, cagrad_c=0.2)
    assert ServerConfig().combining == Aggregation()
    assert ServerConfig(strategy="fedbone").combining == Aggregation(rule="gpaggregation")
    assert ServerConfig(strategy="fedbone", aggregation="mean").combining == Aggregation()


def test_config_fedbone_is_planned_as_all_in_one():
    tasks = ("depth", "normals")
    plans = [ServerConfig(strategy=name).planner(tasks).next([], None) for name in ("fedbone", "all_in_one")]
    assert plans[0] == plans[1]
    assert plans[0].groups == (tasks,)


def test_config_fingerprint_has_how_changes_are_combined():
    plain = ServerConfig()
    assert "aggregation" not in plain.fingerprint()  # federations that began before there was a choice go on
    assert read(None, aggregation="mean", cagrad_c=0.1).fingerprint() == plain.fingerprint()
    others = [{"aggregation": "pcgrad"}, {"aggregation": "cagrad"}, {"server_lr": 0.5}, {"server_momentum": 0.5}]
    assert len({read(None, **keys).fingerprint() for keys in [{}, *others]}) == 1 + len(others)


def test_config_keys_of_the_training_table_are_keys():
    assert all(set(ServerConfig.__struct_fields__) >= set(keys.values()) for keys in TABLES.values())
