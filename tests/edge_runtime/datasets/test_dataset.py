import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.datasets.dataset import (
    MAX_DESCRIPTION_BYTES,
    Dataset,
    DatasetInvalid,
    Description,
    convert,
    input_names,
)
from edge_runtime.datasets.dataset_writer import SplitWriter, remove_split, write_description, write_split


def images(count, dtype=np.uint8):
    return (np.arange(count * 3 * 4 * 5) % 251).reshape(count, 3, 4, 5).astype(dtype)


def write(folder, counts=None, tasks=("depth", "segmentation")):
    for name, count in (counts or {"train": 6, "val": 2, "test": 3}).items():
        labels = {
            "depth": np.full((count, 1, 4, 5), 0.5, np.float32),
            "segmentation": np.tile(np.arange(count, dtype=np.uint8)[:, None, None], (1, 4, 5)),
        }
        write_split(folder / name, images(count), {task: labels[task] for task in tasks})


def test_open_reads_what_was_written(tmp_path):
    write(tmp_path)
    dataset = Dataset.open(tmp_path)
    assert dataset.tasks == ("depth", "segmentation")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "val": 2, "test": 3}
    assert len(dataset.train) == 6
    assert len(dataset.val) == 2
    assert len(dataset.test) == 3
    assert isinstance(dataset.train.inputs["image"], np.memmap)
    np.testing.assert_array_equal(dataset.train.inputs["image"], images(6))
    assert dataset.description == Description()


def test_open_takes_what_numpy_save_writes(tmp_path):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "image.npy", np.asfortranarray(images(3, np.float32)))
    np.save(tmp_path / "train" / "kind.npy", np.array([4, -1, 7], ">i2"))
    (tmp_path / "train" / ".hidden.npy").write_bytes(b"left by an editor")
    train = Dataset.open(tmp_path).train
    inputs, labels = train.batch([2, 0])
    x = inputs["image"]
    np.testing.assert_array_equal(x, images(3, np.float32)[[2, 0]])
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(convert(labels["kind"], "int64", None), [7, 4])


def test_open_takes_the_formats_second_version(tmp_path):
    write(tmp_path, {"train": 2})
    with (tmp_path / "train" / "image.npy").open("wb") as file:
        np.lib.format.write_array(file, images(2), version=(2, 0))
    np.testing.assert_array_equal(Dataset.open(tmp_path).train.inputs["image"], images(2))


def test_open_without_validation_and_test(tmp_path):
    write(tmp_path, {"train": 2})
    dataset = Dataset.open(tmp_path)
    assert dataset.val is None
    assert dataset.test is None


def test_batch_scales_bytes_and_keeps_labels(tmp_path):
    write(tmp_path)
    inputs, labels = Dataset.open(tmp_path).train.batch(np.array([5, 1, 1]))
    x = inputs["image"]
    assert x.shape == (3, 3, 4, 5)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, images(6)[[5, 1, 1]] / 255, rtol=1e-6)
    assert labels["segmentation"].dtype == np.uint8
    assert labels["segmentation"][:, 0, 0].tolist() == [5, 1, 1]
    x[:] = 0  # a batch is the caller's own
    labels["depth"][:] = 0


def test_batch_of_some_tasks(tmp_path):
    write(tmp_path)
    _, labels = Dataset.open(tmp_path).train.batch([0], ["depth"])
    assert list(labels) == ["depth"]


def test_batch_outside_the_set(tmp_path):
    write(tmp_path)
    with pytest.raises(IndexError):
        Dataset.open(tmp_path).train.batch([6])


@given(st.lists(st.integers(0, 255), min_size=1))
def test_convert_never_scales_unless_a_factor_is_stated(values):
    labels = np.array(values, np.uint8)
    np.testing.assert_array_equal(convert(labels, "float32", None), values)
    np.testing.assert_allclose(convert(labels, "float32", 1 / 255), np.array(values) / 255, rtol=1e-6)
    np.testing.assert_array_equal(convert(labels.astype(np.float32), "float32", 2.0), np.array(values) * 2)
    np.testing.assert_array_equal(convert(labels, "int64", None), values)
    with pytest.raises(DatasetInvalid, match="never scaled: take their factor out"):
        convert(labels, "int64", 0.5)


def test_convert_keeps_nan():
    labels = np.array([0.5, np.nan], np.float32)
    converted = convert(labels, "float32", None)
    np.testing.assert_array_equal(converted, labels)
    assert not np.shares_memory(converted, labels)


@pytest.mark.parametrize(("given_type", "wanted"), [("float32", "int64"), ("float64", "float32")])
def test_convert_refuses_what_has_no_meaning(given_type, wanted):
    words = {"int64": "class numbers of an integer type", "float32": "float32 values"}[wanted]
    with pytest.raises(DatasetInvalid, match=f"{given_type} cannot be used for a task of {words}: save them as"):
        convert(np.zeros(3, given_type), wanted, None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_batch_of_an_image_without_numbers_names_the_sample(tmp_path, value):
    pixels = images(6, np.float32)
    pixels[4, 1, 2, 3] = value
    write_split(tmp_path / "train", pixels, {})
    train = Dataset.open(tmp_path).train
    train.batch([0, 5])
    with pytest.raises(DatasetInvalid, match=rf"train/image\.npy, sample 4: it has the value {value}"):
        train.batch([5, 4])


def test_open_without_train(tmp_path):
    write(tmp_path, {"val": 2})
    with pytest.raises(DatasetInvalid, match="no folder train"):
        Dataset.open(tmp_path)


def test_open_without_images(tmp_path):
    write(tmp_path)
    (tmp_path / "val" / "image.npy").unlink()
    with pytest.raises(DatasetInvalid, match=r"val/image\.npy is missing"):
        Dataset.open(tmp_path)


def test_open_with_a_folder_for_an_array(tmp_path):
    write(tmp_path)
    (tmp_path / "train" / "image.npy").unlink()
    (tmp_path / "train" / "image.npy").mkdir()
    with pytest.raises(DatasetInvalid, match=r"train/image\.npy cannot be read"):
        Dataset.open(tmp_path)


def signals(folder, **more):
    """Three windows of a signal, tokens and readings of sensors, with one label each."""
    (folder / "train").mkdir()
    arrays = {
        "window": np.arange(24, dtype=np.int16).reshape(3, 2, 4),
        "tokens": np.array([[0, 3], [2, 1], [1, 1]], np.uint16),
        "weather": np.array([[0.5], [1.5], [2.5]], np.float32),
        "kind": np.array([0, 1, 0]),
        **more,
    }
    for name, array in arrays.items():
        np.save(folder / "train" / f"{name}.npy", array)
    write_description(folder, Description(inputs=("tokens", "weather", "window"), factors={"window": 0.5}))
    return folder


def test_inputs_are_what_the_description_names(tmp_path):
    dataset = Dataset.open(signals(tmp_path))
    train = dataset.train
    assert (len(train), train.tasks, list(train.inputs)) == (3, ("kind",), ["tokens", "weather", "window"])
    assert [train.input_type(name) for name in train.inputs] == ["int64", "float32", "float32"]
    inputs, labels = train.batch([2, 0])
    assert {name: array.dtype for name, array in inputs.items()} == {
        "tokens": np.int64, "weather": np.float32, "window": np.float32,
    }  # fmt: skip
    assert inputs["tokens"].tolist() == [[1, 1], [0, 3]]
    assert inputs["window"][1].tolist() == [[0.0, 0.5, 1.0, 1.5], [2.0, 2.5, 3.0, 3.5]]
    assert labels["kind"].tolist() == [0, 0]
    assert list(train.batch([0], (), ("weather",))[0]) == ["weather"]
    assert input_names(tmp_path) == ("tokens", "weather", "window")


def test_inputs_that_cannot_be_used_are_named(tmp_path):
    signals(tmp_path, weather=np.zeros((3, 1)))
    with pytest.raises(
        DatasetInvalid, match=r"train/weather\.npy is float64: save inputs as an integer type or float32"
    ):
        Dataset.open(tmp_path)
    np.save(tmp_path / "train" / "weather.npy", np.zeros((2, 1), np.float32))
    with pytest.raises(DatasetInvalid, match=r"train/weather\.npy has shape \(2, 1\), for 3 samples in tokens\.npy"):
        Dataset.open(tmp_path)
    (tmp_path / "train" / "weather.npy").unlink()
    with pytest.raises(DatasetInvalid, match=r"train/weather\.npy is missing from the data set$"):
        Dataset.open(tmp_path)
    write_description(tmp_path, Description())
    with pytest.raises(
        DatasetInvalid, match=r'train/image\.npy is missing from the data set: .* "inputs": \["signal"\]'
    ):
        Dataset.open(tmp_path)


def test_open_with_other_numbers_of_labels(tmp_path):
    write(tmp_path)
    np.save(tmp_path / "train" / "depth.npy", np.zeros((5, 1, 4, 5), np.float32))
    with pytest.raises(DatasetInvalid, match=r"train/depth\.npy has shape \(5, 1, 4, 5\), for 6 samples"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("name", ["Depth", "a-b", "9to5"])
def test_open_with_a_name_that_is_no_task(tmp_path, name):
    write(tmp_path)
    np.save(tmp_path / "train" / f"{name}.npy", np.zeros(6, np.float32))
    with pytest.raises(DatasetInvalid, match=rf"train/{name}\.npy does not name a task"):
        Dataset.open(tmp_path)


def test_open_with_other_tasks_in_test(tmp_path):
    write(tmp_path)
    (tmp_path / "test" / "depth.npy").unlink()
    with pytest.raises(DatasetInvalid, match=r"train/depth\.npy has no counterpart in .*test"):
        Dataset.open(tmp_path)
    (tmp_path / "train" / "depth.npy").unlink()
    with pytest.raises(DatasetInvalid, match=r"val/depth\.npy has no counterpart in .*train"):
        Dataset.open(tmp_path)


def test_open_with_other_shapes_in_val(tmp_path):
    write(tmp_path)
    np.save(tmp_path / "val" / "depth.npy", np.zeros((2, 1, 4, 6), np.float32))
    with pytest.raises(DatasetInvalid, match=r"val/depth\.npy has elements \(1, 4, 6\) of float32"):
        Dataset.open(tmp_path)


def test_description_round_trip(tmp_path):
    write(tmp_path)
    description = Description(
        name="house", source="drawn", scales={"depth": "log(1 + metres)", "edges": 8.0}, counts={"train": 6, "val": 2}
    )
    write_description(tmp_path, description)
    assert Dataset.open(tmp_path).description == description


def test_description_may_say_more(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.json").write_text('{"name": "house", "licence": "CC0"}')
    assert Dataset.open(tmp_path).description.name == "house"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"name": 3}', b'{"counts": {"train": -1}}', b'{"scales": {"A": 1}}', b'"\xff"']
)
def test_description_malformed(tmp_path, data):
    write(tmp_path)
    (tmp_path / "dataset.json").write_bytes(data)
    with pytest.raises(DatasetInvalid, match=r"dataset\.json is not a data set's description"):
        Dataset.open(tmp_path)


def test_description_oversized(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.json").write_bytes(b" " * (MAX_DESCRIPTION_BYTES + 1))
    with pytest.raises(DatasetInvalid, match=r"dataset\.json has 1048577 bytes"):
        Dataset.open(tmp_path)


def test_description_unreadable(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.json").mkdir()
    with pytest.raises(DatasetInvalid, match=r"dataset\.json cannot be read"):
        Dataset.open(tmp_path)


def test_description_counts_other_images(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.json").write_bytes(msgspec.json.encode({"counts": {"val": 9}}))
    with pytest.raises(DatasetInvalid, match=r"dataset\.json counts 9 samples in val, .*val/image\.npy has 2"):
        Dataset.open(tmp_path)


def test_write_split_replaces_an_earlier_one(tmp_path):
    write(tmp_path)
    write(tmp_path, {"train": 2}, tasks=("depth",))
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["depth.npy", "image.npy"]


def test_write_split_refuses_other_numbers_of_labels(tmp_path):
    with pytest.raises(ValueError, match="depth has labels of 3 images, there are 2"):
        write_split(tmp_path / "train", images(2), {"depth": np.zeros((3, 1), np.float32)})


@pytest.mark.parametrize("name", ["image", "a/b", "A", ""])
def test_write_split_refuses_a_name_that_is_no_task(tmp_path, name):
    with pytest.raises(ValueError, match="cannot name a task"):
        write_split(tmp_path / "train", images(2), {name: np.zeros(2, np.float32)})


def test_write_split_refuses_an_empty_set(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        write_split(tmp_path / "train", images(0), {})


def test_split_writer_broken_off_leaves_the_earlier_set(tmp_path):
    write(tmp_path)

    def break_off():
        with SplitWriter(tmp_path / "train", 2) as writer:
            writer.add(images(1)[0], {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert len(Dataset.open(tmp_path).train) == 6
    assert not list((tmp_path / "train").glob(".*"))


def test_split_writer_with_too_few_images(tmp_path):
    with pytest.raises(ValueError, match="got 1 of the 2 images"), SplitWriter(tmp_path / "train", 2) as writer:
        writer.add(images(1)[0], {})
    assert not (tmp_path / "train").exists()


def test_split_writer_with_too_many_images_or_other_tasks(tmp_path):
    with SplitWriter(tmp_path / "train", 1) as writer:
        writer.add(images(1)[0], {})
        with pytest.raises(ValueError, match="begun for 1 images"):
            writer.add(images(1)[0], {})
    with SplitWriter(tmp_path / "train", 2) as writer:
        writer.add(images(1)[0], {})
        with pytest.raises(ValueError, match="begun for 2 images with image"):
            writer.add(images(1)[0], {"depth": np.zeros(1, np.float32)})
        writer.add(images(1)[0], {})


def test_split_writer_with_another_shape(tmp_path):
    with SplitWriter(tmp_path / "train", 2) as writer:
        writer.add(images(1)[0], {})
        with pytest.raises(ValueError, match=r"image has shape \(3, 4, 4\)"):
            writer.add(images(1)[0, :, :, :4], {})
        writer.add(images(1)[0], {})


def test_remove_split_leaves_what_is_not_its_own(tmp_path):
    write(tmp_path)
    (tmp_path / "val" / "notes.txt").write_text("mine")
    for name in ("train", "val", "nowhere"):
        remove_split(tmp_path / name)
    assert not (tmp_path / "train").exists()
    assert [path.name for path in (tmp_path / "val").iterdir()] == ["notes.txt"]


def test_labelled_samples_are_those_with_a_value(tmp_path):
    depth = np.full((4, 1, 4, 5), np.nan, np.float32)
    depth[0], depth[2, 0, 3, 4], depth[3, 0, 0, 0] = 1.0, 0.0, np.inf
    labels = {"depth": depth, "normals": np.full((4, 3), np.nan, np.float32), "room": np.zeros(4, np.int64)}
    write_split(tmp_path / "train", images(4), labels)
    split = Dataset.open(tmp_path).train
    assert split.labelled("depth").tolist() == [True, False, True, True]
    assert split.labelled("room").all()
    assert not split.labelled("normals").any()
    assert not split.labelled("edges").any()
    assert split.labelled("edges").shape == (4,)
    assert split.examples(["room", "normals", "edges", "depth"]) == {"room": 4, "depth": 3}
