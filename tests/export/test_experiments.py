"""The data of docs/experiments, from sources of the form that users have."""

import gzip
import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge_runtime.datasets.dataset import Dataset  # noqa: E402

pytestmark = pytest.mark.workstation
EXPERIMENTS = Path(__file__).parents[2] / "docs" / "experiments"
HEADER = "No,year,month,day,hour,PM2.5,PM10,SO2,NO2,CO,O3,TEMP,PRES,DEWP,RAIN,wd,WSPM,station"


def experiment(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_idx(folder, name, pictures, classes):
    head = len(pictures).to_bytes(4, "big")
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x08\x03" + head + bytes(8) + pictures.tobytes())
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x08\x01" + head + classes.tobytes())


def test_pairs_are_prepared_from_the_files_of_fashion_mnist(tmp_path):
    classes = np.tile(np.arange(10, dtype=np.uint8), 12)
    for name, first in (("train", 1), ("t10k", 101)):
        pictures = np.broadcast_to((classes + first)[:, None, None], (120, 28, 28)).astype(np.uint8)
        write_idx(tmp_path, name, pictures, classes)
    pairs = experiment("pairs")
    pairs.prepare(tmp_path, tmp_path / "out", devices=2, counts={"train": 9, "val": 5, "test": 4}, seed=0)
    data = Dataset.open(tmp_path / "out" / "device_01")
    assert (len(data.train), len(data.val), len(data.test)) == (9, 5, 4)
    assert data.tasks == ("left_class", "left_kind", "left_shape", "right_class", "right_kind", "right_shape")
    image = np.load(tmp_path / "out" / "device_01" / "test" / "image.npy")
    left, right = data.test.labels["left_class"][:], data.test.labels["right_class"][:]
    assert image.shape == (4, 1, 36, 36)
    np.testing.assert_array_equal(image[:, 0, 0, 0], left + 101)
    np.testing.assert_array_equal(image[:, 0, -1, -1], right + 101)
    np.testing.assert_array_equal(image[:, 0, 20, 20], np.maximum(left, right) + 101)
    np.testing.assert_array_equal(data.test.labels["left_kind"][:], pairs.KINDS[left])
    np.testing.assert_allclose(data.test.labels["left_shape"][:, 0, 0, 0], (left + 101) / 255, rtol=1e-6)
    again = tmp_path / "again"
    pairs.prepare(tmp_path, again, devices=2, counts={"train": 9, "val": 5, "test": 4}, seed=0)
    np.testing.assert_array_equal(np.load(again / "device_01" / "test" / "image.npy"), image)


def reading(i):
    """One hour at a station; ozone is measured every third day alone."""
    ozone = i % 60 if i // 24 % 3 == 0 else "NA"
    gases = f"{i % 50},{i % 70},{i % 9},{i % 30},300,{ozone}"
    return f'{i},2013,3,1,{i % 24},{gases},{i % 20 - 5},1020,-{i % 3},{i % 2},"N",1,"A"'


@pytest.mark.parametrize("packed", [False, True])
def test_air_is_prepared_from_a_folder_or_an_archive_of_stations(tmp_path, packed, monkeypatch):
    air = experiment("air")
    monkeypatch.setattr(air, "YEAR_H", 40 * 24)  # a short year
    text = "\n".join([HEADER, *map(reading, range(4 * air.YEAR_H))]) + "\n"
    source = tmp_path / "source"
    source.mkdir()
    names = [f"PRSA_Data_{station}_20130301-20170228.csv" for station in ("Aotizhongxin", "Wanliu")]
    if packed:
        source = tmp_path / "prsa.tar.xz"
        with tarfile.open(source, "w:xz") as archive:
            for name in names:
                member = tarfile.TarInfo(f"PRSA/{name}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
    else:
        for name in names:
            (source / name).write_text(text)
    air.prepare(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["aotizhongxin", "wanliu"]
    data = Dataset.open(tmp_path / "out" / "wanliu")
    assert data.tasks == tuple(sorted(air.TASKS))
    assert data.train.inputs["readings"].shape[1:] == (11, 48)
    assert np.isfinite(data.train.inputs["readings"][:]).all()
    assert len(data.train) == len(range(48, 100 * 24 - 24, 24))
    ozone = data.train.labels["o3"][:]
    assert 0.2 < np.isnan(ozone).mean() < 0.8
    assert np.isfinite(data.train.labels["pm25"][:]).all()


def test_air_without_stations_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no PRSA_Data_STATION"):
        experiment("air").prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("name", "tasks"), [("pairs", 6), ("air", 9)])
def test_models_of_the_experiments_give_every_task_a_loss(name, tasks):
    torch.manual_seed(0)
    model = experiment(name).build()
    given = model.example_input
    z = model.encoder(**given) if isinstance(given, dict) else model.encoder(given)
    losses = {
        task: model.losses[task](head(z), model.example_targets[task]).item() for task, head in model.heads.items()
    }
    assert len(losses) == tasks
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
