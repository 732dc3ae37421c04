"""FedBone's rounds, without a network: a task for each client, one general model, GPAggregation, the server's step."""

import msgspec
import numpy as np
import pytest
import samples

torch = pytest.importorskip("torch")

from broker_server.aggregation.gpaggregation import aggregate  # noqa: E402
from broker_server.aggregation.server_optimizer import ServerOptimizer  # noqa: E402
from edge_runtime.datasets.dataset import Split  # noqa: E402
from edge_runtime.split_learning.client import RemoteEncoder  # noqa: E402
from edge_runtime.split_learning.server import EncoderServer  # noqa: E402
from edge_runtime.training.engine import Engine  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.training.trainer import Trainer  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.tensors import transfer  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.models import vit  # noqa: E402

pytestmark = pytest.mark.workstation
TASKS = ("depth", "kind", "normals")
SETTINGS = samples.training(epochs=2, lr=0.05, momentum=0.0, seed=1)


class Direct:
    """A channel to a host in this process."""

    def __init__(self, host, device):
        self.host, self.device, self.box = host, device, []

    def send(self, data):
        self.box += [answer for _, answer in self.host.on_message(self.device, data, 0.0)]

    def receive(self, _):
        return self.box.pop(0) if self.box else None


def images(client):
    random = np.random.default_rng(client)
    level = random.random((8, 1, 1, 1), np.float32)  # what the labels depend on can be seen
    image = (255 * np.clip(level + 0.1 * random.random((8, 3, 16, 16), np.float32), 0, 1)).astype(np.uint8)
    labels = {
        "depth": np.broadcast_to(level, (8, 1, 16, 16)).copy(),
        "normals": np.broadcast_to(1 - level, (8, 3, 16, 16)).copy(),
        "kind": (level.reshape(-1) * 10).astype(np.int64),
    }
    return Split(inputs={"image": image}, labels=labels)


def test_clients_with_a_task_each_teach_one_general_model(tmp_path):
    torch.manual_seed(0)
    compiled = compile_model(vit.make(TASKS, width=8, heads=1, depth=1, size=16, patch=4), stages=1)
    for name, data in compiled.graphs.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
    whole = describe(compiled, "vit", wire.Parity(max_relative_error=0.0, worst="", compared=0))
    graph = GraphCache(Engine()).of(whole, lambda name, _: tmp_path / f"{name}.onnx")
    own = [whole.group((task,), whole.weights).local() for task in TASKS]
    weights = [transfer(whole.table, compiled.weights, local.table) for local in own]
    general = transfer(whole.table, compiled.weights, whole.encoder_table)
    server = ServerOptimizer(lr=1.0, momentum=0.3)
    state, history, losses = np.zeros(server.state_size(len(general)), np.float32), None, []
    taught = {}

    def keep(device, replica):
        taught[device] = replica.delta

    for number in range(4):
        settings = msgspec.structs.replace(SETTINGS, first_epoch=2 * number)
        host = EncoderServer(whole, graph, general, settings, number, on_finished=keep)
        losses.append([])
        for client, local in enumerate(own):
            encoder = RemoteEncoder(whole, Direct(host, f"client-{client}"), number, SETTINGS.batch)
            encoder.begin_round()
            device = Model(local, graph, weights[client], encoder=encoder)
            trained = Trainer(device, images(client)).train(settings, np.zeros_like(device.gradient))
            encoder.finish_round()
            weights[client] = device.weights
            losses[-1] += trained.loss.values()
        changes = list(taught.values())
        assert len(changes) == len(TASKS)
        history = aggregate(changes, [8] * len(TASKS), history)
        before = general
        general, state = server.step(general, history, state)
        assert 0 < np.linalg.norm(general - before) < 10 * np.linalg.norm(np.mean(changes, axis=0))
    assert (np.array(losses[-1]) < np.array(losses[0])).all(), losses
