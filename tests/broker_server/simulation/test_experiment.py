from pathlib import Path

import pytest

from broker_server.simulation.experiment import Experiment, data_sets, read_experiment
from broker_server.simulation.outline import Outline
from devices.cli.settings import ConfigInvalid

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "docs" / "experiments").glob("*.toml"))
LEAST = 'data = "d"\nbundle = "b"\n[methods.MAS]\n'
LOCAL, ALL = {"baseline": "local_training"}, {"grouping": {"strategy": "all_in_one"}}
FIVE = ("depth", "edge_texture", "keypoints", "normals", "segmentation")


@pytest.fixture
def write(tmp_path):
    def write_(text):
        path = tmp_path / "experiment.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_


def test_read_experiment_makes_paths_absolute(write, tmp_path):
    found = read_experiment(write('data = "../d"\nmodel = "m.py:build"\n[methods.MAS]\n'))
    assert (found.data, found.model) == (str(tmp_path / ".." / "d"), f"{tmp_path / 'm.py'}:build")
    assert read_experiment(write(LEAST)).bundle == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data = [", "experiment.toml is not TOML: "),
        (b"\xff\xfe", "experiment.toml is not TOML: "),
        ("wings = 2\n" + LEAST, "wings: there is no such key"),
        ("sections_ = 2\n" + LEAST, "sections_: there is no such key; did you mean sections?"),
        ('data = "d"\nbundle = "b"\n', "methods"),
        ('data = "d"\nbundle = "b"\n[methods]\n', "methods"),
        ('data = "d"\n[methods.MAS]\n', "either a model to compile or a bundle"),
        ('model = "m.py"\n' + LEAST, "either a model to compile or a bundle"),
        ("seeds = []\n" + LEAST, "seeds"),
        ("seeds = [1, 1]\n" + LEAST, "seeds: one of them is there twice"),
        ("seeds = [-1]\n" + LEAST, "seeds"),
        (LEAST.replace("MAS", '"../MAS"'), "methods"),
        (LEAST + "[fleet.board]\nspeed = 0\n", "speed"),
        (LEAST + "[fleet.boards.attic]\nwings = 2\n", "fleet.boards"),
        (LEAST + '[sections]\nablations = ["TAG"]\n', "sections: there is no method 'TAG'"),
        (LEAST + '[sections]\na = ["MAS"]\nb = ["MAS"]\n', "stands in two"),
        ('devices = ["../x"]\n' + LEAST, "devices"),
        ('reference = "TAG"\n' + LEAST, "reference: there is no method 'TAG'"),
        (LEAST + '[tasks_of]\n"../x" = ["depth"]\n', "tasks_of"),
        (LEAST + "[tasks_of]\nattic = []\n", "tasks_of"),
        (LEAST + '[tasks_of]\nattic = ["../depth"]\n', "tasks_of"),
    ],
)
def test_read_experiment_refuses_with_its_place(write, text, says):
    with pytest.raises(ConfigInvalid) as raised:
        read_experiment(write(text))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value).strip()


def test_read_experiment_needs_a_file(tmp_path):
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_experiment(tmp_path / "nowhere.toml")


def make(**methods):
    return Experiment(
        data="d", bundle="b", settings={"grouping": {"merged_rounds": 3}, "training": {"lr": 0.5}}, methods=methods
    )


def test_config_lets_a_method_s_keys_go_over_what_all_share():
    experiment = make(single={"grouping": {"strategy": "one_by_one"}}, MAS={"training": {"lr": 0.25}})
    assert experiment.config("single", 5, 8).training.lr == 0.5
    config = experiment.config("MAS", 5, 8)
    assert (config.training.lr, config.grouping.merged_rounds, config.seed, config.rounds.min_devices) == (
        0.25,
        3,
        5,
        8,
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"broker": {"port": 1883}}, "broker: a simulation decides this itself"),
        ({"seed": 3}, "seed: a simulation decides this itself"),
        ({"wings": 2}, "wings: there is no such key"),
        ({"grouping": {"stratgy": "mas"}}, "grouping.stratgy: there is no such key; did you mean grouping.strategy?"),
        ({"training": {"lr": "much"}}, "training.lr: 'much' is not a number, above 0 and at most 1000"),
        ({"grouping": {"strategy": "fixed"}}, "fixed_groups"),
        (LOCAL, "baseline: a device by itself trains its tasks together: give grouping.strategy = 'all_in_one'"),
        (LOCAL | ALL | {"split_learning": {"encoder": "server"}}, "baseline: a device by itself has the encoder"),
        ({"split_learning": {"idle_s": 3.0}}, "split_learning.idle_s: a simulation decides this itself"),
        ({"baseline": "none"}, "baseline"),
        ({"alone": 1}, "alone"),
        ({"tasks_of": {"attic": "depth"}}, "tasks_of"),
    ],
)
def test_config_refuses_with_the_method_s_name(keys, says):
    with pytest.raises(ConfigInvalid, match=r"^methods\.MAS: ") as raised:
        make(MAS=keys).config("MAS", 0, 2)
    assert says in str(raised.value)


def test_config_of_devices_that_train_alone_needs_one():
    experiment = make(local=ALL | LOCAL, MAS={})
    assert [experiment.config(name, 5, 8).rounds.min_devices for name in ("local", "MAS")] == [1, 8]
    assert [experiment.conduct(name).is_local for name in ("local", "MAS")] == [True, False]


def test_config_takes_keys_of_before():
    experiment = make(MAS={"strategy": "fedbone", "general": "host", "aggregation": "mean", "server_lr": 0.5})
    config = experiment.config("MAS", 0, 2)
    assert (config.grouping.strategy, config.split_learning.encoder) == ("fedbone", "server")
    assert (config.aggregation.rule, config.aggregation.optimizer.lr) == ("mean", 0.5)


def test_conduct_has_the_experiment_s_tasks_of_or_the_method_s():
    own = {"attic": ("depth",)}
    experiment = Experiment(
        data="d", bundle="b", tasks_of=own, methods={"a": {}, "b": {"tasks_of": {}}, "c": {"tasks_of": {"x": ["y"]}}}
    )
    assert [experiment.conduct(name).tasks_of for name in "abc"] == [own, {}, {"x": ("y",)}]
    assert experiment.config("b", 0, 2) == experiment.config("a", 0, 2)


def test_config_leaves_it_to_the_strategy_where_the_encoder_is_computed():
    fedbone = {"grouping": {"strategy": "fedbone"}}
    experiment = make(a=fedbone, b={}, c=fedbone | {"split_learning": {"encoder": "device"}})
    assert [experiment.config(name, 0, 2).is_apart for name in "abc"] == [True, False, False]


def test_fleet_of_a_method_is_the_experiment_s_with_its_own_boards():
    experiment = make(MAS={}, slow={"board": {"up_bytes_per_s": 9.0}}, odd={"board": {"wings": 2}})
    assert experiment.fleet_of("MAS") == experiment.fleet
    assert experiment.fleet_of("slow").of("attic").up_bytes_per_s == 9.0
    with pytest.raises(ConfigInvalid, match=r"methods\.odd: board: .*wings"):
        experiment.fleet_of("odd")


def test_outline_is_what_is_going_to_be_run():
    assert make(MAS={}, TAG={}).outline("rooms") == Outline(name="rooms", methods=("MAS", "TAG"), seeds=(0,))
    experiment = Experiment(data="d", bundle="b", reference="TAG", methods={"MAS": {}, "TAG": {}})
    assert experiment.outline("rooms").reference == "TAG"


def test_data_sets_are_the_folder_s_or_those_that_are_named(tmp_path):
    for name in ("cellar", "attic", "notes"):
        (tmp_path / name / ("train" if name != "notes" else "x")).mkdir(parents=True)
    assert data_sets(tmp_path) == {"attic": tmp_path / "attic", "cellar": tmp_path / "cellar"}
    assert list(data_sets(tmp_path, ("cellar",))) == ["cellar"]
    with pytest.raises(ConfigInvalid, match="no data set 'notes'; it has attic, cellar"):
        data_sets(tmp_path, ("cellar", "notes"))


def test_data_sets_of_a_folder_without_any(tmp_path):
    with pytest.raises(ConfigInvalid, match="holds no data sets"):
        data_sets(tmp_path)


def test_data_sets_must_be_able_to_name_devices(tmp_path):
    (tmp_path / "at tic" / "train").mkdir(parents=True)
    with pytest.raises(ConfigInvalid, match="cannot name a device"):
        data_sets(tmp_path)


def test_experiments_of_the_documents_are_there():
    assert {path.stem for path in FILES} >= {"rooms5", "rooms5-full", "rooms9-full", "taskonomy", "views"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiments_of_the_documents_have_methods_that_can_be_planned(path):
    experiment = read_experiment(path)
    for method in experiment.methods:
        config = experiment.config(method, experiment.seeds[0], 8)
        config.grouping.planner(config.tasks or FIVE, config.seed)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "rooms5-time"], ids=lambda path: path.stem)
def test_experiments_of_the_same_examples_give_every_method_as_many_rounds(path):
    experiment = read_experiment(path)
    rounds = sum(experiment.settings["grouping"][key] for key in ("merged_rounds", "split_rounds"))
    for method in experiment.methods:
        config = experiment.config(method, experiment.seeds[0], 8)
        assert config.grouping.merged_rounds + config.grouping.split_rounds == rounds


def test_an_experiment_s_own_keys_of_before_are_read_with_a_sentence(tmp_path, caplog):
    path = tmp_path / "experiment.toml"
    path.write_text(
        'data = "d"\nbundle = "b"\n[methods]\na.alone = true\nb.alone = false\nc = {}\n[fleet.host]\nspeed = 4.0\n'
    )
    found = read_experiment(path)
    assert found.fleet.encoder_server.speed == 4.0
    assert "fleet.host is called fleet.encoder_server now" in caplog.text
    assert [found.conduct(name).is_local for name in "abc"] == [True, False, False]
    assert "methods.a.alone is called baseline now" in caplog.text
