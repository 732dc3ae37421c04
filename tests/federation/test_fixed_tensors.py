"""A federation of a model with a frozen backbone: its numbers travel once, and nothing else does of them."""

import textwrap

import pytest

pytest.importorskip("jwt")
pytest.importorskip("torch")
pytest.importorskip("onnx")

from edge_runtime.wire import bundle_folder
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.tensors import unpack
from export.__main__ import main as export

pytestmark = pytest.mark.workstation

MODEL = """
    import torch
    from torch import nn

    from export.losses import masked_l1, pixel_cross_entropy
    from export.model import MultiTaskModel


    def head(outputs):
        return nn.Sequential(nn.Conv2d(8, 4, 1), nn.SiLU(), nn.Upsample(scale_factor=4), nn.Conv2d(4, outputs, 1))


    def build():
        backbone = nn.Sequential(
            nn.Conv2d(3, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3, 2, 1), nn.ReLU()
        )
        backbone.requires_grad_(False).eval()
        return MultiTaskModel(
            encoder=nn.Sequential(backbone, ADAPTED),
            heads={"depth": head(1), "normals": head(3), "segmentation": head(4)},
            losses={"depth": masked_l1, "normals": nn.MSELoss(), "segmentation": pixel_cross_entropy},
            example_input=torch.rand(4, 3, 16, 16),
            example_targets={
                "depth": torch.rand(4, 1, 16, 16),
                "normals": torch.rand(4, 3, 16, 16),
                "segmentation": torch.randint(0, 4, (4, 16, 16)),
            },
        )
"""
ADAPTED = {
    "a part is trained": "nn.Sequential(nn.Conv2d(128, 8, 1), nn.SiLU())",
    "nothing is trained": "nn.Conv2d(128, 8, 1).requires_grad_(False)",
}


@pytest.mark.parametrize("case", ["a part is trained", pytest.param("nothing is trained", marks=pytest.mark.long)])
def test_frozen_backbone_is_sent_once_and_is_in_no_update(case, site, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(MODEL.replace("ADAPTED", ADAPTED[case])))
    site.bundle = tmp_path / "bundle"
    assert export(["compile", f"{path}:build", "--out", str(site.bundle)]) == 0
    manifest = bundle_folder.read_folder(site.bundle)
    fixed = manifest.fixed["encoder"]
    weights_bytes = 4 * manifest.table.size
    assert fixed.file.size_bytes > 50 * weights_bytes
    trains_encoder = case == "a part is trained"
    settings = {} if trains_encoder else {"strategy": "all_in_one"}
    server = site.serve(**settings)
    devices = [site.device(name) for name in ("ana", "ben")]
    models = site.ends(server, *devices)
    report = site.report()
    first, *others = report["rounds"]
    for row in others:
        assert row["bytes_down"] < fixed.file.size_bytes / 2
    for row in report["rounds"]:
        assert row["bytes_up"] < fixed.file.size_bytes / 2  # two updates and what goes with them
    for group, content in models.items():
        table = manifest.group(tuple(group.split("+")), manifest.weights).table
        assert ("encoder" in table.parts) == trains_encoder
        assert unpack(table, content).nbytes <= weights_bytes
    for name in ("ana", "ben"):
        store = BlobStore(site.root / name / "state" / "blobs")
        assert store.path(fixed.file.digest).stat().st_size == fixed.file.size_bytes
    if trains_encoder:
        assert report["test_loss"]["end"]["total"] < report["test_loss"]["before"]["total"]
    else:
        assert sum(others[-1]["train_loss"].values()) < sum(first["train_loss"].values())
