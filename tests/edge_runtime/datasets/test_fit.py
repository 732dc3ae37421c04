import numpy as np
import pytest

from edge_runtime.datasets.dataset import Dataset, DatasetInvalid, Description, Split
from edge_runtime.datasets.dataset_writer import write_description, write_split
from edge_runtime.datasets.fit import check_input, check_labels
from edge_runtime.datasets.stored_array import BLOCK_BYTES
from edge_runtime.wire.labels import LabelContract
from edge_runtime.wire.manifest import Array, Input, Task

CLASSES = LabelContract(classes=5)


def task(contract, dtype="int64", shape=(4, 4)):
    prediction = Array(shape=(5, 4, 4), dtype="float32")
    return Task(name="s", target=Array(shape=shape, dtype=dtype), prediction=prediction, labels=contract)


def opened(folder, labels, **description):
    write_split(folder / "train", np.zeros((len(labels), 3, 2, 2), np.uint8), {"s": labels})
    write_description(folder, Description(**description))
    return Dataset.open(folder).train


def classes(*odd, dtype=np.int64):
    labels = (np.arange(12 * 16).reshape(12, 4, 4) % 5).astype(dtype)
    for sample, value in odd:
        labels[sample, 1, 2] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "contract", "words"),
    [
        (
            classes((7, -1), (9, -2)),
            CLASSES,
            r"train/s\.npy, sample 7: -1 is none of the 5 classes 0 to 4 of s",
        ),
        (classes((3, 5), dtype=np.uint8), CLASSES, "sample 3: 5 is none of the 5 classes"),
        (classes((0, -1)), LabelContract(classes=5, ignored=(255,)), "sample 0: -1 .* nor 255, which its loss ignores"),
        (classes((0, 255)), LabelContract(classes=5, ignored=(0, -100)), "255 .* nor -100, which its loss ignores"),
        (classes((11, 2**63), dtype=np.uint64), CLASSES, "sample 11: 9223372036854775808 is none of"),
    ],
)
def test_number_that_is_no_class_is_named(tmp_path, labels, contract, words):
    with pytest.raises(DatasetInvalid, match=words):
        check_labels(task(contract), opened(tmp_path, labels))


@pytest.mark.parametrize(
    ("labels", "contract"),
    [
        (classes(), CLASSES),
        (classes((1, 255), (4, -100)), LabelContract(classes=5, ignored=(255, -100))),
        (classes((2, 0)), LabelContract(classes=5, ignored=(0,))),
        (classes((1, 77)), LabelContract()),  # a loss whose classes are not known
        (classes((1, 77)), None),  # a bundle of before
    ],
)
def test_classes_that_fit_pass(tmp_path, labels, contract):
    check_labels(task(contract), opened(tmp_path, labels))


def values(*odd, dtype=np.float32):
    labels = np.full((6, 1, 4, 4), 1, dtype)
    for sample, value in odd:
        labels[sample, 0, 2, 1] = value
    return labels


PROBABILITIES = LabelContract(bounds=(0, 1))


@pytest.mark.parametrize(
    ("labels", "contract", "words"),
    [
        (values((4, 255)), PROBABILITIES, r"sample 4: 255 is outside of 0 to 1, .* \"factors\": \{\"s\": 0\.0039"),
        (values((5, -0.5)), PROBABILITIES, "sample 5: -0.5 is outside of 0 to 1"),
        (values((2, np.inf)), LabelContract(nan=True), "sample 2: inf is no value for s"),
        (values((2, -np.inf)), PROBABILITIES, "sample 2: -inf is no value"),
        (values((3, np.nan)), LabelContract(), "sample 3: a part of the label is NaN, .* a masked loss"),
        (values((3, 255), dtype=np.uint8), PROBABILITIES, r"sample 3: integers .* 255: .*\"s\": 0\.0039"),
        (values((3, 200), dtype=np.uint16), LabelContract(), r"sample 3: integers .* 200: .*\"s\": 1\.0\}"),
        (values((1, -1), dtype=np.int8), None, "sample 1: integers stand for the values of s only if they are 0 and 1"),
    ],
)
def test_value_that_a_loss_is_not_for_is_named(tmp_path, labels, contract, words):
    with pytest.raises(DatasetInvalid, match=words):
        check_labels(task(contract, "float32", (1, 4, 4)), opened(tmp_path, labels))


def test_values_that_fit_pass(tmp_path):
    whole = values()
    whole[2] = np.nan  # a sample without a label is one for every loss
    for number, (labels, contract) in enumerate(
        [
            (values((1, 0.5)), PROBABILITIES),
            (values((1, 700.5)), LabelContract()),
            (whole, LabelContract()),
            (values((2, np.nan)), LabelContract(nan=True, bounds=(0, 1))),
            (values((2, np.inf)), LabelContract(inf=True)),
            (values((2, 0), dtype=np.uint8), PROBABILITIES),
            (values((2, np.inf)), None),
        ]
    ):
        check_labels(task(contract, "float32", (1, 4, 4)), opened(tmp_path / str(number), labels))


def test_stated_factor_is_what_labels_are_held_to(tmp_path):
    bytes_of_masks, wanted = values((3, 255), dtype=np.uint8), task(PROBABILITIES, "float32", (1, 4, 4))
    check_labels(wanted, opened(tmp_path / "a", bytes_of_masks, factors={"s": 1 / 255}))
    with pytest.raises(DatasetInvalid, match="sample 3: 2.55 is outside of 0 to 1"):
        check_labels(wanted, opened(tmp_path / "b", bytes_of_masks, factors={"s": 0.01}))
    check_labels(wanted, opened(tmp_path / "c", values((1, 255)) - 1, factors={"s": 1 / 255}))


def test_bytes_of_an_image_that_an_import_of_before_made_keep_their_scale(tmp_path):
    split = opened(tmp_path, values((3, 255), dtype=np.uint8), scales={"s": "the image, 1/255"})
    assert split.factors == {"s": 1 / 255}


def test_classes_are_counted_when_they_are_checked(tmp_path):
    split = opened(tmp_path / "a", classes((2, 255), dtype=np.uint8))
    check_labels(task(LabelContract(classes=5, ignored=(255, 0))), split)
    _, *others = np.bincount(classes().ravel(), minlength=5)
    others[int(classes()[2, 1, 2]) - 1] -= 1
    assert split.class_counts == {"s": (0, *others)}
    truth = opened(tmp_path / "b", (classes() == 0).astype(np.uint8))
    check_labels(task(None, "float32"), truth)
    assert truth.class_counts == {"s": (192 - 39, 39)}
    values_of_any_kind = opened(tmp_path / "c", classes(dtype=np.uint8), factors={"s": 0.1})
    check_labels(task(None, "float32"), values_of_any_kind)
    many = opened(tmp_path / "d", classes())
    check_labels(task(LabelContract(classes=10_000)), many)
    assert values_of_any_kind.class_counts == many.class_counts == {}


def test_labels_are_read_in_blocks_and_once():
    labels = np.zeros((3, BLOCK_BYTES // 8 + 1), np.int64)  # a block for each sample
    labels[2, -1] = 9
    split = Split(inputs={"image": np.zeros((3, 3, 2, 2), np.uint8)}, labels={"s": labels})
    with pytest.raises(DatasetInvalid, match=r"s\.npy, sample 2: 9 is none"):
        check_labels(task(CLASSES), split)
    labels[2, -1] = 4
    check_labels(task(CLASSES), split)
    labels[2, -1] = 9
    check_labels(task(CLASSES), split)  # known to fit


def tokens(folder, **description):
    (folder / "train").mkdir()
    np.save(folder / "train" / "tokens.npy", np.array([[0, 3], [2, 1], [7, 1]], np.uint16))
    write_description(folder, Description(inputs=("tokens",), **description))
    return Dataset.open(folder).train


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("signal", Input(shape=(2,), dtype="float32"), 'write signal.npy, and name it in dataset.json, as "inputs"'),
        ("tokens", Input(shape=(3,), dtype="int64"), r"tokens\.npy: samples are \(2,\), the bundle .* \(3,\): import"),
        ("tokens", Input(shape=(2,), dtype="float32"), r"tokens\.npy is uint16, .* float32: save it so, or state in"),
        (
            "tokens",
            Input(shape=(2,), dtype="int64", count=7),
            r"tokens\.npy, sample 2: 7 is none of the 7 numbers 0 to 6",
        ),
    ],
)
def test_input_that_does_not_fit_is_named(tmp_path, name, wanted, words):
    with pytest.raises(DatasetInvalid, match=words):
        check_input(name, wanted, tokens(tmp_path))


def test_values_for_a_model_of_numbers_are_named(tmp_path):
    split = tokens(tmp_path, factors={"tokens": 0.5})
    with pytest.raises(DatasetInvalid, match=r"tokens\.npy is uint16, the bundle was compiled for int64: save it so$"):
        check_input("tokens", Input(shape=(2,), dtype="int64"), split)


def test_input_that_fits_is_read_once(tmp_path):
    split, wanted = tokens(tmp_path), Input(shape=(2,), dtype="int64", count=8)
    check_input("tokens", wanted, split)
    split.inputs["tokens"] = np.array([[9, 9]] * 3)
    check_input("tokens", wanted, split)
    with pytest.raises(DatasetInvalid, match="9 is none of the 9 numbers"):
        check_input("tokens", Input(shape=(2,), dtype="int64", count=9), split)
    check_input("tokens", Input(shape=(2,), dtype="int64"), split)
