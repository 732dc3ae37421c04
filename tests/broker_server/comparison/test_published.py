import pytest

from broker_server.comparison.published import FIGURES, REFERENCE, published


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("one by one", "one-by-one"),
        ("mas 3", "MAS-3"),
        ("GradNorm", "all-in-one + GradNorm"),
        ("All-in-one +FedProx", "all-in-one + FedProx"),
    ],
)
def test_published_knows_a_method_however_it_is_written(name, figure):
    assert published(name) is FIGURES[figure]


@pytest.mark.parametrize("name", ["MAS-2 from scratch", "MAS", "MAS-5", ""])
def test_published_knows_no_other_method(name):
    assert published(name) is None


def test_figures_show_what_the_paper_claims():
    lowest = min(FIGURES, key=lambda name: FIGURES[name].test_loss)
    assert lowest == "MAS-4"
    assert FIGURES["MAS-2"].gpu_h < 0.55 * FIGURES[REFERENCE].gpu_h
