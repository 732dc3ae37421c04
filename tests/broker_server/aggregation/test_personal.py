import pytest
import samples

from broker_server.aggregation.hca2 import HyperWeights
from broker_server.aggregation.personal import PersonalSettings, PersonalTerms, personal_terms
from broker_server.aggregation.priors import TaskCovariance, TensorNormal
from broker_server.aggregation.relations import Laplacian, OwnHeads, Similarity
from broker_server.strategies.settings import PERSONAL
from edge_runtime.wire.personal import MoreauModel, OwnModel, OwnParts
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"encoder.w": (1,), "head.a.w": (1,), "head.b.w": (1,), "state.head.a.m": (1,), "stem.w": (1,)})


@pytest.mark.parametrize(
    ("strategy", "terms"),
    [
        ("fedper", PersonalTerms(heads=True)),
        ("fedrep", PersonalTerms(heads=True, own_epochs=2)),
        ("ditto", PersonalTerms(model=OwnModel(strength=1.0, epochs=2))),
        ("pfedme", PersonalTerms(model=MoreauModel(strength=15.0, steps=5, lr=0.01))),
        ("fedu", PersonalTerms(relation=Laplacian(step=0.5, neighbours={}))),
        ("fedhca2", PersonalTerms(relation=HyperWeights(c=0.4))),
        ("deep_mocha", PersonalTerms(relation=OwnHeads(), prior=TaskCovariance(strength=0.01))),
        ("multilinear", PersonalTerms(relation=OwnHeads(), prior=TensorNormal(strength=1e-9))),
        ("mat_fl", PersonalTerms(heads=True, relation=Similarity(threshold=0.0))),
    ],
)
def test_each_method_leaves_devices_what_its_paper_says(strategy, terms):
    assert strategy in PERSONAL
    assert personal_terms(strategy, PersonalSettings(own_epochs=2), stem=False) == terms


def test_a_strength_that_is_given_goes_over_the_methods_own():
    assert personal_terms("pfedme", PersonalSettings(strength=2.0), stem=False).model.strength == 2.0


def test_other_strategies_leave_devices_their_stems_where_that_is_asked_for():
    start = samples.blob()
    terms = personal_terms("fedbone", PersonalSettings(), stem=True)
    assert terms.parts(TABLE) == ("stem",)
    assert terms.of(TABLE, start) == OwnParts(parts=("stem",), start=start)
    terms = personal_terms("all_in_one", PersonalSettings(), stem=False)
    assert (terms.parts(TABLE), terms.of(TABLE, None)) == ((), None)


def test_plans_name_the_heads_of_the_group():
    terms = personal_terms("fedrep", PersonalSettings(), stem=False)
    found = terms.of(TABLE, samples.blob())
    assert (found.parts, found.own_epochs) == (("head.a", "head.b"), 1)
