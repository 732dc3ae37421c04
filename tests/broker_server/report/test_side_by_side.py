import msgspec

from broker_server.report.build import MetricMean
from broker_server.report.side_by_side import lines, run


def test_runs_stand_beside_one_another_with_the_least_marked(make_report):
    metrics = {"end": {"a": MetricMean(name="miou", value=0.5)}}
    first = run("first", make_report(test_metrics=metrics))
    other = make_report(wall_s=50.0, test_loss={"before": None, "merged": {"a": 1.0, "total": 1.0}, "end": None})
    found = {line.title: line for line in lines([first, run("other", other)])}
    assert found["groups"].texts == ("a; b", "a; b")
    assert found["test loss: a"] == ("test loss: a", ("0.5000", "1.0000"), frozenset({0}))
    assert found["test loss: b"].texts == ("2.5000", "–")
    assert found["test loss: b"].best == frozenset()
    assert found["test loss: total"].best == {1}
    assert found["a: mIoU ↑"].texts == ("0.5000", "–")
    assert found["time"] == ("time", ("1 min 40 s", "50 s"), frozenset({1}))
    assert found["moved over the network"].best == frozenset()
    assert found["energy"].texts == ("–", "–")
    assert list(found).index("test loss: total") > list(found).index("test loss: b")


def test_run_that_has_only_begun_has_dashes(make_report):
    report = make_report(rounds=[], test_loss={}, wall_s=None)
    found = {line.title: line.texts for line in lines([run("new", report)])}
    assert (found["groups"], found["time"], found["peak memory of a device"]) == (("–",), ("–",), ("–",))
    assert msgspec.json.decode(msgspec.json.encode(run("new", report)))["peak_rss_bytes"] is None
