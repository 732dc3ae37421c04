import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from edge_runtime.training.metrics import Accuracy, AngularError, MeanIoU, RootMeanSquare  # noqa: E402
from export import losses  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.contract import check  # noqa: E402
from export.errors import ModelInvalid  # noqa: E402
from export.metrics import choose  # noqa: E402
from export.models import vit, xception  # noqa: E402

pytestmark = pytest.mark.workstation

DENSE = torch.randint(0, 4, (2, 8, 8)), torch.zeros(2, 4, 8, 8)
KIND = torch.randint(0, 4, (2,)), torch.zeros(2, 4)
VALUES = torch.rand(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)


def chosen(loss, arrays, metrics=None, ignored=None):
    found = choose("a", loss, *arrays, metrics=metrics or {}, ignored_classes=ignored or {})
    return found[:2] if found.measured is None else found


@pytest.mark.parametrize(
    ("loss", "arrays", "expected"),
    [
        (losses.pixel_cross_entropy, DENSE, ("miou", 0)),
        (losses.cross_entropy(ignore=2), DENSE, ("miou", 2)),
        (losses.cross_entropy(smoothing=0.1), KIND, ("accuracy", None)),
        (nn.CrossEntropyLoss(), DENSE, ("miou", None)),
        (nn.CrossEntropyLoss(ignore_index=3), DENSE, ("miou", 3)),
        (F.cross_entropy, KIND, ("accuracy", None)),
        (losses.masked_l1, VALUES, ("rmse", None)),
        (losses.masked_huber(0.5), VALUES, ("rmse", None)),
        (nn.MSELoss(), VALUES, ("rmse", None)),
        (losses.masked_binary_cross_entropy, VALUES, ("accuracy", None)),
        (nn.BCEWithLogitsLoss(), VALUES, ("accuracy", None)),
        (losses.cosine, VALUES, ("angular_error_deg", None)),
        (losses.dice, VALUES, (None, None)),
        (lambda prediction, target: (prediction - target).abs().mean(), VALUES, (None, None)),
        (nn.MSELoss(), (torch.rand(2), torch.rand(2, 1)), (None, None)),  # what is usual does not fit
    ],
)
def test_metric_by_default_is_what_is_usual_for_the_loss(loss, arrays, expected):
    assert chosen(loss, arrays) == expected


def test_metric_is_as_the_model_says():
    assert chosen(losses.masked_l1, VALUES, {"a": "angular_error_deg"}) == ("angular_error_deg", None)
    assert chosen(losses.masked_l1, VALUES, {"a": None}) == (None, None)
    assert chosen(F.cross_entropy, DENSE, {"a": "accuracy"}, {"a": 1}) == ("accuracy", 1)
    assert chosen(F.cross_entropy, DENSE, ignored={"a": 1}) == ("miou", 1)


SPREAD = VALUES[0], {"mean": VALUES[1], "log_variance": VALUES[1]}


def test_metric_of_several_predictions_is_of_the_one_that_the_model_names():
    assert chosen(losses.l1, SPREAD) == (None, None)
    assert chosen(losses.l1, SPREAD, {"a": None}) == (None, None)
    assert chosen(losses.l1, SPREAD, {"a": ("mean", "rmse")}) == ("rmse", None, "mean")
    scores = {"boxes": torch.rand(2, 4), "scores": KIND[1]}
    assert chosen(losses.l1, (KIND[0], scores), {"a": ("scores", "accuracy")}, {"a": 3}) == ("accuracy", 3, "scores")


@pytest.mark.parametrize(
    ("arrays", "metric", "words"),
    [
        (VALUES, "psnr", "no metric 'psnr' for a: choose from"),
        (VALUES, "miou", "the metric of a: miou is of classes"),
        (VALUES, ("mean", "rmse"), "head.a gives one prediction: name the metric of a alone"),
        (SPREAD, "rmse", r"one of the predictions mean, log_variance: say which, as \('mean', 'rmse'\)"),
        (SPREAD, ("variance", "rmse"), "one of the predictions mean, log_variance"),
        (SPREAD, ("mean", "miou"), "the metric of a: miou is of classes"),
    ],
)
def test_metric_that_cannot_be_is_refused(arrays, metric, words):
    with pytest.raises(ModelInvalid, match=words):
        chosen(losses.l1, arrays, {"a": metric})


def test_metric_is_in_the_manifest(make):
    model = make(metrics={"b": None})
    parity = {"max_relative_error": 0.0, "worst": "", "compared": 0}
    from edge_runtime.wire.manifest import Parity

    manifest = describe(compile_model(model), "small", Parity(**parity))
    assert [(task.name, task.metric, task.ignored) for task in manifest.tasks] == [
        ("a", "rmse", None),
        ("b", None, None),
    ]


@pytest.mark.parametrize("field", [{"metrics": {"c": "rmse"}}, {"ignored_classes": {"c": 0}}])
def test_metric_of_an_unknown_task_is_refused(make, field):
    with pytest.raises(ModelInvalid, match="'c', which is none of the tasks a, b"):
        check(make(**field))


def test_models_of_mas_have_a_metric_for_every_task():
    model = xception.make(xception.NINE, width=0.25, size=32, batch=1)
    check(model)
    found = {task: model.metric(task, model.heads[task](model.encode(model.inputs)))[:2] for task in model.tasks}
    special = {"segmentation": ("miou", 0), "normals": ("angular_error_deg", None)}
    assert found == {task: special.get(task, ("rmse", None)) for task in xception.NINE}
    model = vit.build()
    z = model.encode(model.inputs)
    assert {task: model.metric(task, model.heads[task](z)).metric for task in model.tasks} == {
        "depth": "rmse",
        "kind": "accuracy",
        "segmentation": "miou",
    }


def test_metrics_are_torchs():
    torch.manual_seed(0)
    values, wanted = torch.randn(3, 3, 5, 5), torch.randn(3, 3, 5, 5)
    scores, classes = torch.randn(3, 4, 5, 5), torch.randint(0, 4, (3, 5, 5))
    angle = torch.rad2deg(torch.acos(F.cosine_similarity(values.double(), wanted.double(), dim=1)))
    one_hot = F.one_hot(scores.argmax(1), 4).bool(), F.one_hot(classes, 4).bool()
    both, either = (one_hot[0] & one_hot[1]).sum((0, 1, 2)), (one_hot[0] | one_hot[1]).sum((0, 1, 2))
    for metric, pair, expected in (
        (RootMeanSquare(), (values, wanted), F.mse_loss(values.double(), wanted.double()).sqrt()),
        (AngularError(), (values, wanted), angle.mean()),
        (Accuracy(), (scores, classes), (scores.argmax(1) == classes).double().mean()),
        (MeanIoU(4), (scores, classes), (both / either).mean()),
    ):
        metric.add(*(np.asarray(each) for each in pair))
        assert metric.result() == pytest.approx(expected.item(), rel=1e-6)
