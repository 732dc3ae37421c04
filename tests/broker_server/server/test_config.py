from pathlib import Path

import msgspec
import pytest

from broker_server.aggregation.rules import Aggregation
from broker_server.aggregation.server_optimizer import ServerOptimizer
from broker_server.grouping.search import SplitImpossible
from broker_server.server.config import SETTINGS, ServerConfig, check, read
from devices.cli.settings import COMMAND_LINE, DEFAULT, ConfigInvalid
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.manifest import Array
from edge_runtime.wire.messages import Training
from edge_runtime.wire.reconstruction import Reconstruction
from edge_runtime.wire.training import FixedWeighting, GradNormWeighting, UncertaintyWeighting

BUNDLE = Path(__file__).parents[2] / "fixtures" / "bundle"


@pytest.fixture
def write(tmp_path):
    def write_(text):
        path = tmp_path / "server.toml"
        path.write_text(text)
        return path

    return write_


def test_read_nothing_gives_the_defaults():
    assert read().value == ServerConfig()
    assert set(read().sources.values()) == {DEFAULT}
    assert ServerConfig().bundle_path == Path("runs/server/bundle")


def test_read_flags_go_over_the_file(write, tmp_path):
    paths = (
        'state = "st"\nbundle = "/b"\ntasks = ["a", "b"]\n[broker]\ncertificate = "c.pem"\nkey = "k.pem"\nport = 1\n'
    )
    path = write(f'federation = "lab"\n{paths}')
    found = read(path, {"broker": {"port": 2}, "bundle": Path("c")})
    config = found.value
    assert (config.federation, config.broker.port, config.tasks) == ("lab", 2, ("a", "b"))
    assert config.state == tmp_path.resolve() / "st"
    assert (config.broker.certificate, config.broker.key) == (
        tmp_path.resolve() / "c.pem",
        tmp_path.resolve() / "k.pem",
    )
    assert config.bundle_path == Path("c")
    assert [found.sources[key] for key in ("federation", "broker.port", "seed")] == [str(path), COMMAND_LINE, DEFAULT]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("colour = 1", "server.toml: colour: there is no such key"),
        ("[trainin]\nlr = 0.1", r"trainin: there is no such key; did you mean training"),
        ("[training]\nlearning_rate = 0.1\nmomentun = 0.1", r"training\.learning_rate: there is no such key"),
        ("[training]\nmomentun = 0.1", r"training\.momentun: there is no such key; did you mean training\.momentum\?"),
        ("[broker]\nport = 70000", r"broker\.port: 70000 is not a whole number, 0 to 65535"),
        ("[training]\nlr = 0.0", r"training\.lr: 0\.0 is not a number, above 0 and at most 1000"),
        ("[broker]\nport = [", "not TOML"),
        ('tasks = ["a", "a"]', "twice"),
        ('tasks = ["A"]', "tasks"),
        ("[rounds]\nquorum = 3\nclients_per_round = 2", r"rounds\.quorum"),
        ('[rounds]\nmode = "buffered"\nquorum = 3', r"rounds\.quorum.*buffer_size"),
        ('[rounds]\nmode = "buffered"\nover_selection = 0.5', r"rounds\.over_selection"),
        ('grouping.strategy = "fedbone"\n[rounds]\nmode = "buffered"', r"rounds\.mode"),
        ("[grouping]\nprobe_every = 0", "affinities"),
        ("state = 3", "state: 3 is not a path"),
        ('[broker]\ncertificate = "c.pem"', r"broker\.certificate: .* a key as well"),
        ('[broker]\nkey = "k.pem"', r"broker\.key: .* a certificate as well"),
        ("training = 3", "training: a table of keys is needed"),
        ("[training]\nport = 3", r"training\.port: there is no such key; did you mean broker\.port\?"),
        ('[training]\noptimizer = "adam"', r"training\.optimizer: 'adam' is not one of"),
        ("[training]\nclip_norm = -1", "clip_norm"),
        ("[training.task_weights]\nA = 1", "task_weights"),
        ("[training.task_weights]\na = -1", "task_weights"),
        ('[training]\nweighting = "gradnorm"\ntask_weights = { a = 2 }', "task_weights: .* are learned"),
        ("updates = 3", "updates: a table"),
        ('[updates]\nscheme = "int4"', r"updates\.scheme"),
        ("[updates]\ntopk_fraction = 0.6", "topk_fraction"),
        ("[grouping]\nprobe_from = 20", "probe_from: the merged phase has 20 rounds"),
        ("local_stems = true", "local_stems: they go with the strategies all_in_one, fedbone, fedper and fedrep"),
        ('[split_learning]\nencoder = "server"', r"grouping\.probe: 'exact' needs the encoder on devices"),
        ('[aggregation]\nrule = "median"', r"aggregation\.rule: 'median' is not one of"),
        ('[aggregation.optimizer]\nmethod = "lamb"', r"aggregation\.optimizer\.method: 'lamb' is not one of"),
        ("[aggregation.optimizer]\nlr = 0.0", r"aggregation\.optimizer\.lr: 0\.0 is not"),
        ("[aggregation.optimizer]\nmomentum = 1.0", r"aggregation\.optimizer\.momentum"),
        ("[aggregation.optimizer]\ntau = 0.0", r"aggregation\.optimizer\.tau"),
        ('[grouping]\nstrategy = "fixed"', r"grouping\.fixed_groups: the strategy `fixed` needs them"),
        (
            '[grouping]\nstrategy = "ditto"\n[split_learning]\nencoder = "server"',
            r"split_learning\.encoder: with 'ditto' devices have the encoder",
        ),
        ('[grouping]\nstrategy = "pfedme"\n[training]\nproximal_mu = 1.0', "pfedme has a proximal term of its own"),
        ('[grouping]\nstrategy = "pfedme"\n[training]\noptimizer = "adamw"', "pfedme has a proximal term of its own"),
        (
            '[grouping]\nstrategy = "multilinear"\n[training]\nproximal_mu = 1.0',
            "'multilinear' holds weights to centres",
        ),
        ("[personal]\nthreshold = 2.0", r"personal\.threshold"),
        ('[grouping]\nstrategy = "fedu"\n[rounds]\nmode = "buffered"', r"rounds\.mode: weights for each device"),
    ],
)
def test_read_refuses(write, text, why):
    with pytest.raises(ConfigInvalid, match=why) as caught:
        read(write(text))
    assert "\n" not in str(caught.value)


def test_read_missing_file_or_folder(tmp_path):
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read(tmp_path / "none.toml")
    with pytest.raises(ConfigInvalid, match="not a file"):
        read(tmp_path)


def test_read_how_devices_train(write):
    path = write(
        "[training]\nepochs = 2\noptimizer = 'adamw'\nlr = 1e-3\nclip_norm = 1\nproximal_mu = 0.01\n"
        "[training.task_weights]\ndepth = 2\n[grouping]\nprobe = 'representation'\n"
    )
    assert read(path, {"training": {"lr": 0.5}}).value.first_training == Training(
        epochs=2,
        first_epoch=0,
        batch=16,
        lr=0.5,
        momentum=0.9,
        weight_decay=1e-4,
        seed=0,
        probe_every=50,
        probe="representation",
        optimizer="adamw",
        clip_norm=1.0,
        proximal_mu=0.01,
        weighting=FixedWeighting(weights={"depth": 2.0}),
    )


def test_read_how_updates_are_sent(write):
    path = write("[updates]\nscheme = 'topk'\ntopk_fraction = 0.01\n")
    found = read(path).value
    assert found.updates == Updates(scheme="topk", topk_fraction=0.01)
    other = read(path, {"updates": {"scheme": "int8"}}).value
    assert other.updates == Updates(scheme="int8", topk_fraction=0.01)
    assert ServerConfig().updates == Updates(scheme="fp32")
    assert other.fingerprint() == found.fingerprint()  # it may change on the way


def test_config_strategy_for_too_few_tasks(make_config):
    with pytest.raises(SplitImpossible):
        make_config(groups=3).terms(read_folder(BUNDLE).group(("depth", "normals"), read_folder(BUNDLE).weights))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tasks": ("depth", "smell")}, "tasks: the bundle has no 'smell'; it has depth, normals, segmentation"),
        ({"tasks": ("depth", "normals"), "task_weights": {"segmentation": 2.0}}, "task_weights: 'segmentation' is not"),
        ({"crop": 8}, "training: crop: 8 pixels are half of the image or more"),
        ({"strategy": "fedbone"}, r"split_learning\.encoder: the bundle's model has no stem"),
        ({"strategy": "all_in_one", "local_stems": True}, "local_stems: the bundle's model has no stem"),
    ],
)
def test_terms_that_the_bundle_cannot_meet(make_config, settings, why):
    with pytest.raises(ConfigInvalid, match=why):
        make_config(**settings).terms(read_folder(BUNDLE))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "grouping.strategy: 'mas' groups tasks by how they change the encoder"),
        ({"strategy": "tag"}, "grouping.strategy: 'tag' groups tasks by how they change the encoder"),
        ({"strategy": "fedbone"}, "split_learning.encoder: the bundle's encoder has nothing to train"),
        ({"groups": 1}, None),
        ({"strategy": "all_in_one"}, None),
    ],
)
def test_terms_of_a_bundle_whose_encoder_is_fixed(make_config, settings, why):
    whole = read_folder(BUNDLE)
    heads = whole.table.select(part for part in whole.table.parts if part != "encoder")
    stem = Array(shape=(4,), dtype="float32") if settings.get("strategy") == "fedbone" else None
    bundle = msgspec.structs.replace(whole, tensors=heads.tensors, embedding=stem)
    if why is None:
        assert make_config(**settings).terms(bundle).tasks == whole.task_names
        return
    with pytest.raises(ConfigInvalid, match=why):
        make_config(**settings).terms(bundle)


def test_terms_are_of_all_tasks_where_none_is_named(make_config):
    assert ServerConfig().terms(read_folder(BUNDLE)).tasks == ("depth", "normals", "segmentation")
    assert make_config(tasks=("depth", "normals")).terms(read_folder(BUNDLE)).tasks == ("depth", "normals")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"task_weights": {"a": 2.0}}, FixedWeighting(weights={"a": 2.0})),
        ({"weighting": "gradnorm", "gradnorm_alpha": 0.5}, GradNormWeighting(alpha=0.5)),
        ({"weighting": "uncertainty", "weighting_lr": 0.5}, UncertaintyWeighting(lr=0.5)),
    ],
)
def test_config_weighting(make_config, keys, expected):
    assert make_config(**keys).first_training.weighting == expected


def test_config_gradient_combination(make_config):
    found = make_config(gradient_combination="cagrad", cagrad_c=0.2).first_training
    assert (found.gradient_combination, found.cagrad_c) == ("cagrad", 0.2)
    assert ServerConfig().first_training.gradient_combination == "sum"


def test_config_aggregation(make_config):
    keys = {"aggregation": "cagrad", "aggregation_cagrad_c": 0.2, "server_optimizer": "adam", "server_lr": 0.01}
    found = make_config(**keys, server_momentum=0.9).encoder_aggregation
    step = ServerOptimizer(method="adam", lr=0.01, momentum=0.9)
    assert found == Aggregation(rule="cagrad", optimizer=step, cagrad_c=0.2)
    assert ServerConfig().encoder_aggregation == Aggregation(rule="mean")
    assert make_config(strategy="fedbone").encoder_aggregation == Aggregation(rule="gpaggregation")
    assert make_config(strategy="fedbone", aggregation="mean").encoder_aggregation == Aggregation(rule="mean")


def test_config_fedbone_is_planned_as_all_in_one(make_config):
    tasks = ("depth", "normals")
    plans = [make_config(strategy=name).grouping.planner(tasks, 0).next([], None) for name in ("fedbone", "all_in_one")]
    assert plans[0] == plans[1]
    assert plans[0].groups == (tasks,)


MAS = (
    '{"strategy":"mas","federation":"home","tasks":[],"merged_rounds":20,"probe_from":0,"probe_rounds":10,'
    '"probe":"exact","split_rounds":10,"groups":2,"at_most":false,"seed":0,"fixed_groups":[],"start":"merged",'
    '"lr_schedule":"restart","choice":"best","head_cost":0.25,"confidence":0.0,"confidence_rounds":3}'
)
"""As a state folder of the first version has it."""
GPAGGREGATION = (
    ',"aggregation":{"rule":"gpaggregation","optimizer":{"method":"sgd","lr":1.0,"momentum":0.0,"beta2":0.99,'
    '"tau":0.001},"cagrad_c":0.4}}'
)
CAGRAD = (
    ',"aggregation":{"rule":"cagrad","optimizer":{"method":"adam","lr":0.01,"momentum":0.0,"beta2":0.99,'
    '"tau":0.001},"cagrad_c":0.2}}'
)


def having(more, **changes):
    text = MAS
    for old, new in changes.values():
        text = text.replace(old, new)
    return text[:-1] + more


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, MAS),
        (
            {"strategy": "fedbone", "local_stems": True, "split_learning_precision": "int8"},
            having(
                GPAGGREGATION,
                strategy=('"mas"', '"fedbone"'),
                general=(
                    '"choice":"best"',
                    '"choice":"best","stems":"own","general":"auto","general_precision":"int8","general_parts":1',
                ),
            ),
        ),
        (
            {
                "strategy": "all_in_one",
                "split_learning_encoder": "server",
                "split_learning_parts": 2,
                "probe": "representation",
            },
            having(
                "}",
                strategy=('"mas"', '"all_in_one"'),
                probe=('"exact"', '"representation"'),
                general=(
                    '"choice":"best"',
                    '"choice":"best","general":"host","general_precision":"fp32","general_parts":2',
                ),
            ),
        ),
        (
            {
                "grouping_method": "training_cost",
                "groups": 4,
                "aggregation": "cagrad",
                "aggregation_cagrad_c": 0.2,
                "server_optimizer": "adam",
                "server_lr": 0.01,
                "tasks": ("a", "b"),
            },
            having(
                CAGRAD,
                method=('"best"', '"worth"'),
                groups=('"groups":2', '"groups":4'),
                tasks=('"tasks":[]', '"tasks":["a","b"]'),
            ),
        ),
    ],
)
def test_config_fingerprint_is_that_of_state_folders_of_before(make_config, settings, expected):
    assert make_config(**settings).fingerprint() == expected


def test_stem_from_which_inputs_come_back_is_refused_unless_it_is_allowed_by_name(make_config):
    narrow, wide = (Reconstruction(fp32=psnr_db, fp16=psnr_db, int8=psnr_db) for psnr_db in (17.0, 60.0))
    bundle = msgspec.structs.replace(read_folder(BUNDLE), embedding=Array(shape=(4,), dtype="float32"))
    measured = {each: msgspec.structs.replace(bundle, reconstruction=each) for each in (narrow, wide)}
    make_config(strategy="fedbone").check_reconstruction(measured[narrow])
    for allowed in ({"split_learning_encoder": "device"}, {"split_learning_allow_reconstruction": True}):
        make_config(strategy="fedbone", **allowed).check_reconstruction(measured[wide])
    with pytest.raises(ConfigInvalid, match=r"at 60 dB, and 20 dB are the most .*allow_reconstruction = true"):
        make_config(strategy="fedbone").check_reconstruction(measured[wide])
    with pytest.raises(ConfigInvalid, match=r"was not measured"):
        make_config(strategy="fedbone").check_reconstruction(bundle)


def test_config_fingerprint_has_noise_where_there_is_some(make_config):
    quiet, noisy = (make_config(strategy="fedbone", split_learning_noise=noise) for noise in (0.0, 0.5))
    assert quiet.fingerprint() == make_config(strategy="fedbone").fingerprint() != noisy.fingerprint()
    assert noisy.shared_encoder.settings.noise == 0.5


def test_config_fingerprint_has_how_changes_are_combined(make_config):
    plain = ServerConfig()
    assert make_config(aggregation="mean", aggregation_cagrad_c=0.1).fingerprint() == plain.fingerprint()
    others = [{"aggregation": "pcgrad"}, {"aggregation": "cagrad"}, {"server_lr": 0.5}, {"server_momentum": 0.5}]
    assert len({make_config(**keys).fingerprint() for keys in [{}, *others]}) == 1 + len(others)


def test_settings_each_have_a_sentence_and_a_flag_of_their_own():
    assert all(each.sentence for each in SETTINGS)
    assert len({each.flag for each in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grouping_method": "trials", "confidence": 0.5}, "the method 'trials' does not measure"),
        ({"grouping_method": "hybrid", "at_most": True}, "exactly `groups` groups"),
    ],
)
def test_check_of_choices_that_cannot_be_made(make_config, settings, says):
    with pytest.raises(ConfigInvalid, match=says):
        check(make_config(**settings))


def test_trials_need_no_affinities_and_are_what_a_federation_was_begun_with(make_config):
    config = make_config(grouping_method="trials", probe_rounds=0)
    check(config)
    assert '"trial_rounds":1' in config.fingerprint()
    assert "trial_rounds" not in make_config().fingerprint()
    assert '"decide_every":3' in make_config(strategy="tree").fingerprint()
    assert '"draw":3' in make_config(grouping_method="random", draw=3).fingerprint()
