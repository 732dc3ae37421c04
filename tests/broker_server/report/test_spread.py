import pytest

from broker_server.report.spread import spread


def test_spread_of_a_metric_where_more_is_better():
    found = spread({f"d{k:02}": k / 20 for k in range(20, 0, -1)}, "accuracy")
    assert (found.mean, found.worst, found.bottom_decile) == (pytest.approx(0.525), 0.05, 0.1)
    assert found.title == "accuracy ↑"
    assert next(iter(found.by_device)) == "d01"


@pytest.mark.parametrize(("metric", "title"), [("rmse", "RMSE ↓"), (None, "loss ↓")])
def test_spread_where_less_is_better(metric, title):
    found = spread({"a": 1.0, "b": 3.0, "c": 2.0}, metric)
    assert (found.mean, found.worst, found.bottom_decile, found.title) == (2.0, 3.0, 3.0, title)
