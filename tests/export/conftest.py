"""A small model of two tasks, a runner of graphs, and a user's own file."""

import textwrap

import pytest

MODEL_FILE = """
    import torch
    from torch import nn

    from export.model import MultiTaskModel


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down1 = nn.Conv2d(3, 4, 3, padding=1)
            self.down2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

        def forward(self, x):
            a = torch.relu_(self.down1(x))
            return torch.cat([a, self.up(torch.relu(self.down2(a)))], 1)


    def build():
        value = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        return MultiTaskModel(
            encoder=Net(),
            heads={"mask": nn.Conv2d(8, 1, 1), "value": value},
            losses={"mask": nn.BCEWithLogitsLoss(), "value": nn.MSELoss()},
            example_input=torch.rand(3, 3, 8, 8),
            example_targets={"mask": torch.rand(3, 1, 8, 8).round(), "value": torch.rand(3, 2)},
        )
"""


@pytest.fixture
def model_file(tmp_path):
    """A user's own small U-Net, in a file of its own."""
    path = tmp_path / "unet.py"
    path.write_text(textwrap.dedent(MODEL_FILE))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Runs a graph's bytes on the engine, as the exporter's command does."""
    from edge_runtime.training.engine import Engine

    engine, folder = Engine(), tmp_path_factory.mktemp("graphs")

    def call(graph, inputs):
        path = folder / "graph.onnx"
        path.write_bytes(graph)
        return engine.load(path).call(inputs)

    return call


@pytest.fixture
def make():
    """A multi-task model with some of its fields exchanged."""
    import torch
    from torch import nn

    from export.losses import l1
    from export.model import MultiTaskModel

    def model(**fields):
        torch.manual_seed(0)
        defaults = {
            "encoder": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU()),
            "heads": {"a": nn.Conv2d(4, 1, 1), "b": nn.Conv2d(4, 2, 1)},
            "losses": {"a": l1, "b": l1},
            "example_input": torch.rand(2, 3, 8, 8),
            "example_targets": {"a": torch.rand(2, 1, 8, 8), "b": torch.rand(2, 2, 8, 8)},
        }
        return MultiTaskModel(**(defaults | fields))

    return model
