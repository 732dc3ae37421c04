import msgspec
import pytest

from broker_server.aggregation.linear import ProximalStep, Relationship
from broker_server.server.config import check
from devices.cli.settings import ConfigInvalid
from edge_runtime.datasets.feature_sets import linear_bundle
from edge_runtime.datasets.feature_sources import SOURCES


def bundle(loss):
    return linear_bundle("test", SOURCES["har"], 4, loss)[0]


def test_terms_of_linear_models_have_their_rule_and_rounds_that_measure(make_config):
    terms = make_config(strategy="mocha", merged_rounds=3, split_rounds=2).terms(bundle("hinge"))
    assert isinstance(terms.linear, Relationship)
    assert terms.strategy.next([], None).rounds == 7
    terms = make_config(strategy="proximal_mtl", merged_rounds=3, split_rounds=2).terms(bundle("logistic"))
    assert isinstance(terms.linear, ProximalStep)
    assert terms.strategy.next([], None).rounds == 6


@pytest.mark.parametrize(
    ("strategy", "loss", "wrong"),
    [
        ("all_in_one", "hinge", "whose model is linear: take 'mocha'"),
        ("proximal_mtl", "hinge", "wants a smooth loss"),
        ("mixed_effect", "logistic", "wants a squared loss"),
    ],
)
def test_terms_that_do_not_go_with_a_bundle_are_refused(make_config, strategy, loss, wrong):
    with pytest.raises(ConfigInvalid, match=wrong):
        make_config(strategy=strategy).terms(bundle(loss))


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"strategy": "dmtrl", "linear_passes_of": {"a": 2.0}}, "linear.passes_of"),
        ({"strategy": "mocha", "round_mode": "buffered"}, "rounds.mode: 'mocha'"),
        ({"strategy": "amtl"}, "'amtl' hears one device at a time"),
        ({"strategy": "amtl", "round_mode": "buffered"}, "'amtl' hears one device at a time"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make_config, keys, wrong):
    with pytest.raises(ConfigInvalid, match=wrong):
        check(make_config(**keys))


def test_amtl_takes_the_bound_on_delays_from_the_rounds(make_config):
    config = make_config(strategy="amtl", round_mode="buffered", buffer_size=1, max_staleness=7)
    check(config)
    assert config.terms(bundle("logistic")).linear.most_delays == 7


def test_fingerprint_has_the_rule_of_linear_models_alone(make_config):
    linear = msgspec.json.decode(make_config(strategy="mocha", linear_ridge=0.5).fingerprint())
    assert linear["linear"]["ridge"] == 0.5
    assert "linear" not in msgspec.json.decode(make_config(strategy="mas").fingerprint())
