import numpy as np
import pytest

from edge_runtime.agent.work import (
    EvaluationResult,
    TrainResult,
    WorkRefused,
    check_trained,
    evaluation_message,
    update_message,
)
from edge_runtime.wire.blob import describe
from edge_runtime.wire.messages import Affinity, decode_device, encode

NAN = float("nan")
BLOB = describe(b"weights")


def trained(**changes):
    values = {
        "weights": np.zeros(3, np.float32),
        "examples": {"a": 8},
        "train_loss": {"a": 0.5},
        "val_loss": None,
        "affinity": None,
        "wall_s": 1.0,
        "peak_rss_bytes": None,
    }
    return TrainResult(**(values | changes))


def affinity(mean, variance=None):
    return Affinity(tasks=("a",), count=2, mean=((mean,),), variance=None if variance is None else ((variance,),))


def test_update_message_has_what_was_measured(make_bundle):
    result = trained(val_loss={"a": 0.7}, affinity=affinity(-0.5, 0.1), peak_rss_bytes=5)
    update = update_message(make_bundle().plan(3), result, BLOB, "fp32", bytes_down=7, energy=None)
    assert decode_device(encode(update)) == update
    assert (update.round, update.group, update.weights, update.bytes_down) == (3, "a+b", BLOB, 7)
    assert (update.val_loss, update.affinity) == ({"a": 0.7}, affinity(-0.5, 0.1))
    assert (update.scheme, update.base) == ("fp32", None)


def test_update_message_of_a_change_names_the_weights_that_it_changes(make_bundle):
    plan = make_bundle().plan(3)
    update = update_message(plan, trained(), BLOB, "int8", bytes_down=0, energy=None)
    assert (update.scheme, update.base) == ("int8", plan.weights.digest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": np.array([0, np.nan, 0], np.float32)}, "weights were not finite"),
        ({"train_loss": {"a": NAN}}, "training loss of a is nan"),
        ({"train_loss": {"a": float("-inf")}}, "training loss of a is -inf"),
        ({"val_loss": {"a": 0.0, "b": 1e19}}, "validation loss of b is 1e"),
        ({"affinity": affinity(NAN)}, "affinity was not finite"),
        ({"affinity": affinity(0.0, NAN)}, "affinity was not finite"),
    ],
)
def test_check_trained_refuses_what_has_diverged(changes, words):
    with pytest.raises(WorkRefused, match=words) as caught:
        check_trained(trained(**changes))
    assert caught.value.reason == "diverged"


def test_evaluation_message_refuses_a_loss_that_is_not_finite(make_bundle):
    def result(loss):
        return EvaluationResult(loss={"a": loss}, examples={"a": 1}, wall_s=1.0, peak_rss_bytes=None)

    plan = make_bundle().evaluation(2)
    evaluation = evaluation_message(plan, result(0.5), bytes_down=1, energy=None)
    assert decode_device(encode(evaluation)) == evaluation
    with pytest.raises(WorkRefused, match="evaluation loss of a is nan"):
        evaluation_message(plan, result(NAN), bytes_down=1, energy=None)


def test_evaluation_message_carries_metrics_that_are_finite(make_bundle):
    def result(metrics):
        return EvaluationResult(loss={"a": 0.5}, examples={"a": 1}, wall_s=1.0, peak_rss_bytes=None, metrics=metrics)

    plan = make_bundle().evaluation(2)
    for metrics in (None, {"a": 0.75}):
        evaluation = evaluation_message(plan, result(metrics), bytes_down=1, energy=None)
        assert decode_device(encode(evaluation)).metrics == metrics
    with pytest.raises(WorkRefused, match="metric of a is inf"):
        evaluation_message(plan, result({"a": float("inf")}), bytes_down=1, energy=None)
