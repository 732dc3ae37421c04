"""Federations whose general model is computed by the server's host, with the processes of the field."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from edge_runtime.wire import manifest as manifests
from edge_runtime.wire.tensors import unpack

pytestmark = pytest.mark.workstation

MODEL = """
from export.models import vit


def build():
    tasks = ("depth", "normals", "segmentation")
    return vit.make(tasks, width=8, heads=2, depth=2, size=16, patch=4)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    (folder / "model.py").write_text(MODEL)
    command = [
        sys.executable,
        "-m",
        "export",
        "compile",
        str(folder / "model.py:build"),
        "--out",
        str(folder / "bundle"),
    ]
    subprocess.run([*command, "--stages", "2"], check=True)
    return folder / "bundle"


def course(site, bundle, names, *flags, **settings):
    site.bundle = bundle
    server = site.serve(*flags, strategy="all_in_one", min_devices=len(names), **settings)
    devices = [site.device(name, count) for name, count in zip(names, (10, 7, 5, 9), strict=False)]
    return site.ends(server, *devices)


def test_weights_are_those_of_devices_that_have_the_encoder(make_site, bundle):
    names = ("attic", "cellar", "kitchen")
    here, there = make_site("device"), make_site("host")
    models = [course(here, bundle, names), course(there, bundle, names, "--general", "host")]
    assert models[0] == models[1]
    table = manifests.read_folder(bundle).table
    ((_, data),) = models[1].items()
    assert not np.array_equal(unpack(table, data), unpack(table, (bundle / manifests.WEIGHTS).read_bytes()))
    reports = [site.report() for site in (here, there)]
    assert reports[0]["test_loss"] == reports[1]["test_loss"]
    up = [sum(row["bytes_up"] for row in report["rounds"]) for report in reports]
    assert up[1] > up[0]  # activations, at this size more than the encoder's weights
