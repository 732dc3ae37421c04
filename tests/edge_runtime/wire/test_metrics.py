from typing import get_args

import pytest

from edge_runtime.wire.metrics import METRICS, MetricName, headed, misfit


def test_every_metric_says_which_way_is_better():
    assert METRICS.keys() == set(get_args(MetricName))
    assert {name for name, about in METRICS.items() if about.higher_is_better} == {"accuracy", "miou"}


def test_headings_point_where_a_metric_is_better():
    assert [headed(name) for name in ("miou", "rmse")] == ["mIoU ↑", "RMSE ↓"]


@pytest.mark.parametrize(
    ("metric", "target", "classes", "prediction"),
    [
        ("miou", (8, 8), True, (4, 8, 8)),
        ("accuracy", (), True, (10,)),
        ("accuracy", (1, 8, 8), False, (1, 8, 8)),
        ("rmse", (2,), False, (2,)),
        ("rmse", (), False, ()),
        ("angular_error_deg", (3, 8, 8), False, (3, 8, 8)),
    ],
)
def test_misfit_takes_what_fits(metric, target, classes, prediction):
    assert misfit(metric, target=target, classes=classes, prediction=prediction) is None


@pytest.mark.parametrize(
    ("metric", "target", "classes", "prediction", "why"),
    [
        ("rmse", (8, 8), True, (4, 8, 8), "values"),
        ("angular_error_deg", (8, 8), True, (4, 8, 8), "values"),
        ("miou", (8, 8), False, (8, 8), "classes"),
        ("miou", (8, 8), True, (4, 4, 4), "scores"),
        ("accuracy", (), True, (), "scores"),
        ("rmse", (2,), False, (1, 2), "as of the targets"),
        ("accuracy", (2,), False, (3,), "as of the targets"),
        ("angular_error_deg", (), False, (), "components"),
    ],
)
def test_misfit_says_what_does_not_fit(metric, target, classes, prediction, why):
    assert why in misfit(metric, target=target, classes=classes, prediction=prediction)
