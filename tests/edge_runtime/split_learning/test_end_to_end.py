"""Split learning from end to end: a device's trainer, the messages and the encoder server, over channels that fail."""

import random as randoms

import msgspec
import numpy as np
import pytest
import samples

torch = pytest.importorskip("torch")

from edge_runtime.datasets.dataset import Split  # noqa: E402
from edge_runtime.split_learning.client import EncoderServerUnavailable, RemoteEncoder, check_settings  # noqa: E402
from edge_runtime.split_learning.server import EncoderServer  # noqa: E402
from edge_runtime.training.engine import Engine, EngineError  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.training.optimizer import make_optimizer  # noqa: E402
from edge_runtime.training.trainer import Trainer, evaluate  # noqa: E402
from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.embedding_noise import add_noise  # noqa: E402
from edge_runtime.wire.split_learning import MessageLayout, SplitHeader, SplitMessage, decode, encode  # noqa: E402
from edge_runtime.wire.tensors import pack, transfer  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.models import vit  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.workstation]
IMAGES, BATCH = 20, 4
SETTINGS = samples.training(epochs=2, batch=BATCH, lr=0.05, weight_decay=1e-3, seed=3)


class Bundle:
    """A small model with a stem and dropout in its encoder, and images for it."""

    def __init__(self, folder):
        torch.manual_seed(0)
        model = vit.make(("depth", "kind"), width=16, heads=2, depth=1, size=16, patch=4)
        model.encoder.norm = torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Dropout(0.1))
        compiled = compile_model(model, stages=2)
        none = wire.Parity(max_relative_error=0.0, worst="", compared=0)
        bundle_folder.write_folder(
            folder, describe(compiled, "vit", none), pack(compiled.table, compiled.weights), compiled.graphs
        )
        self.manifest = bundle_folder.read_folder(folder)
        self.weights = compiled.weights
        self.graph = GraphCache(Engine()).of(self.manifest, lambda name, _: bundle_folder.graph_path(folder, name))
        self.local = self.manifest.local()
        random = np.random.default_rng(0)
        self.split = Split(
            inputs={"image": random.integers(0, 256, (IMAGES, 3, 16, 16), np.uint8)},
            labels={
                "depth": random.random((IMAGES, 1, 16, 16), np.float32),
                "kind": random.integers(0, 10, IMAGES, np.int64),
            },
        )

    def server(self, settings=SETTINGS, **options):
        """Return an encoder server, with the deltas of the devices that have finished."""
        start = transfer(self.manifest.table, self.weights, self.manifest.encoder_table)
        deltas = {}

        def keep(device, replica):
            deltas[device] = replica.delta

        server = EncoderServer(self.manifest, self.graph, start, settings, 7, on_finished=keep, **options)
        server.deltas = deltas
        return server

    def device(self, remote):
        return Model(
            self.local,
            self.graph,
            transfer(self.manifest.table, self.weights, self.local.table),
            encoder=remote,
        )

    def whole(self, settings=SETTINGS, micro_batch=None):
        """Return a model that one device has trained, and the outcome."""
        model = Model(self.manifest, self.graph, self.weights)
        return model, train(model, self.split, settings, micro_batch)

    def parts(self, model):
        """Return a complete model's weights as the encoder server and the device have them."""
        table = self.manifest.table
        return transfer(table, model.weights, self.manifest.encoder_table), transfer(
            table, model.weights, self.local.table
        )


def train(model, split, settings, micro_batch=None, **more):
    state = np.zeros(make_optimizer(settings).table(model.table.parameters).size, np.float32)
    return Trainer(model, split, micro_batch).train(settings, state, **more)


class Channel:
    """Delivers messages to an encoder server at once; loses, repeats and delays some of them, and has a clock."""

    def __init__(self, server, device="a", *, trouble=0.0, seed=0):
        self.server, self.device = server, device
        self.now_s = 0.0
        self.sent, self.received = [], []
        self._box, self._late = [], []
        self._random, self._trouble = randoms.Random(seed), trouble

    def clock(self):
        return self.now_s

    def send(self, data):
        self.sent.append(data)
        copies = [data] * (0 if self._happens() else 2 if self._happens() else 1)
        if self._late and self._happens():
            copies.append(self._late.pop(0))
        if self._happens():
            self._late.append(data)
        for one in copies:
            for device, reply in self.server.on_message(self.device, one, self.now_s):
                assert device == self.device
                self._box += [] if self._happens() else [reply]

    def receive(self, timeout_s):
        if not self._box:
            self.now_s += timeout_s
            return None
        self.received.append(self._box.pop(self._random.randrange(len(self._box)) if self._happens() else 0))
        return self.received[-1]

    def _happens(self):
        return self._random.random() < self._trouble


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle(tmp_path_factory.mktemp("bundle"))


def remote(bundle, channel, step=0, **options):
    encoder = RemoteEncoder(bundle.manifest, channel, 7, BATCH, clock=channel.clock, **options)
    encoder.begin_round(step)
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [0.0, 0.2])
@pytest.mark.parametrize(("micro_batch", "in_flight"), [(None, 1), (3, 1), (1, 3), (2, 8)])
def test_split_learning_gives_the_bits_of_training_on_one_device(bundle, trouble, micro_batch, in_flight):
    """Fifty steps of SGD with momentum and dropout in fp32, also where a fifth of all is lost, repeated or late."""
    settings = msgspec.structs.replace(SETTINGS, epochs=10)
    whole, expected = bundle.whole(settings, micro_batch)
    server = bundle.server(settings)
    channel = Channel(server, trouble=trouble)
    encoder = remote(bundle, channel, in_flight=in_flight)
    device = bundle.device(encoder)
    found = train(device, bundle.split, settings, micro_batch)
    encoder.finish_round()
    general, local = bundle.parts(whole)
    assert found.loss == expected.loss
    assert device.weights.tobytes() == local.tobytes()
    start = transfer(bundle.manifest.table, bundle.weights, bundle.manifest.encoder_table)
    np.testing.assert_array_equal(server.deltas["a"], start - general)
    assert np.abs(start - general).max() > 1e-3
    assert trouble == 0 or len(channel.sent) > 1.2 * 2 * 50


@pytest.mark.slow
def test_parts_in_flight_begin_before_the_first_backward_pass(bundle):
    found = {}
    for in_flight in (1, 2, 3):
        channel = Channel(bundle.server())
        train(bundle.device(remote(bundle, channel, in_flight=in_flight)), bundle.split, SETTINGS, 1)
        layout = MessageLayout.of(bundle.manifest, BATCH)
        found[in_flight] = "".join(decode(layout, data).header.kind[0] for data in channel.sent[1:9])
    assert found == {
        1: "egegegeg",
        2: "eegegegg",
        3: "eeegeggg",
    }


def test_evaluation_and_first_order_probes_are_those_of_one_device(bundle):
    settings = msgspec.structs.replace(SETTINGS, probe_every=2, probe="representation")
    whole, expected = bundle.whole(settings)
    channel = Channel(bundle.server(settings), trouble=0.1)
    device = bundle.device(remote(bundle, channel))
    found = train(device, bundle.split, settings)
    assert found.affinities.result() == expected.affinities.result()
    assert found.affinities.result().count > 2
    ours, theirs = evaluate(device, bundle.split, 6), evaluate(whole, bundle.split, 6)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_no_embedding_leaves_without_its_noise(bundle):
    layout, first = MessageLayout.of(bundle.manifest, BATCH), {}
    for noise in (0.0, 0.5):
        channel = Channel(bundle.server())
        device = bundle.device(remote(bundle, channel, noise=noise, noise_key=b"secret"))
        evaluate(device, bundle.split, BATCH)
        train(device, bundle.split, SETTINGS)
        messages = [decode(layout, data) for data in channel.sent]
        first[noise] = {each.header.kind: each.arrays[0] for each in reversed(messages) if each.arrays}
    assert {"probe", "embedding"} <= first[0.5].keys()
    for kind in ("probe", "embedding"):
        np.testing.assert_array_equal(first[0.5][kind], add_noise(first[0.0][kind], 0.5, b"secret"))
        assert not np.array_equal(first[0.5][kind], first[0.0][kind])


def test_images_and_labels_never_leave_the_device(bundle):
    """Every byte that is sent: a header of known fields, an embedding or a gradient, and nothing of the data."""
    channel = Channel(bundle.server())
    encoder = remote(bundle, channel)
    device = bundle.device(encoder)
    train(device, bundle.split, SETTINGS)
    encoder.finish_round()
    sizes = {"embedding": 4 * 16 * 16, "gradient": 4 * 16 * 16}
    everything = b"".join(channel.sent)
    for data in channel.sent:
        length = int.from_bytes(data[:2], "little")
        header = msgspec.json.decode(data[2 : 2 + length], type=SplitHeader)
        assert header.kind in {"begin", "embedding", "gradient", "finish"}
        assert len(data) == 2 + length + header.samples * sizes.get(header.kind, 0)
        assert (header.detail, header.reason) == ("", None)
    for i in range(IMAGES):
        image = bundle.split.inputs["image"][i]
        for form in (image, (image / np.float32(255)).astype(np.float32), bundle.split.labels["depth"][i]):
            assert form.tobytes()[:48] not in everything


@pytest.mark.parametrize(("precision", "apart"), [("fp16", 2e-3), ("int8", 0.05)])
def test_rounded_activations_train_nearly_the_same(bundle, precision, apart):
    _, expected = bundle.whole()
    channel = Channel(bundle.server(precision=precision))
    device = bundle.device(remote(bundle, channel, precision=precision))
    found = train(device, bundle.split, SETTINGS)
    for task, loss in expected.loss.items():
        assert found.loss[task] == pytest.approx(loss, rel=apart)
    assert sum(map(len, channel.received)) < (0.6 if precision == "fp16" else 0.4) * 10 * 4 * 2 * 4 * 16 * 16


def test_devices_do_not_meet_within_a_round(bundle):
    """Two devices by turns at one encoder server: each trains as it would alone."""
    server = bundle.server()
    others = [remote(bundle, Channel(server, name)) for name in ("a", "b")]
    devices = [bundle.device(encoder) for encoder in others]
    seeds = (3, 4)
    # Step by step by turns: the second device's rounds are run in the first one's `save`.
    steps = []

    def by_turns(_):
        steps.append(len(steps))

    settings = [msgspec.structs.replace(SETTINGS, seed=seed, epochs=1) for seed in seeds]
    train(devices[0], bundle.split, settings[0], save=by_turns)
    train(devices[1], bundle.split, settings[1])
    for encoder in others:
        encoder.finish_round()
    assert server.active_devices == ()
    assert list(server.deltas) == ["a", "b"]
    for name, one in zip(("a", "b"), settings, strict=True):
        whole, _ = bundle.whole(one)
        start = transfer(bundle.manifest.table, bundle.weights, bundle.manifest.encoder_table)
        np.testing.assert_array_equal(server.deltas[name], start - bundle.parts(whole)[0])


def test_a_device_that_was_killed_goes_on_from_its_checkpoint(bundle):
    """Killed four steps after it marked the third: another process takes up weights, state and progress."""
    server = bundle.server()
    channel = Channel(server)
    encoder = remote(bundle, channel)
    device = bundle.device(encoder)
    state = np.zeros_like(device.gradient)
    kept = []

    class Killed(Exception):
        pass

    def save(progress):
        done = progress()
        if done.steps == 3:
            kept.append((done, device.weights.copy(), state.copy()))
            encoder.mark_checkpoint()
        if done.steps == 7:
            raise Killed

    with pytest.raises(Killed):
        Trainer(device, bundle.split).train(SETTINGS, state, save=save)
    progress, weights, velocity = kept[0]
    again = remote(bundle, Channel(server), step=3)
    device = bundle.device(again)
    device.weights[:] = weights
    Trainer(device, bundle.split).train(SETTINGS, velocity, after=progress)
    again.finish_round()
    whole, _ = bundle.whole()
    general, local = bundle.parts(whole)
    assert device.weights.tobytes() == local.tobytes()
    start = transfer(bundle.manifest.table, bundle.weights, bundle.manifest.encoder_table)
    np.testing.assert_array_equal(server.deltas["a"], start - general)


def test_a_device_that_begins_its_round_again_has_the_initial_weights(bundle):
    server = bundle.server()
    for times in range(2):
        encoder = remote(bundle, Channel(server))
        device = bundle.device(encoder)
        train(device, bundle.split, msgspec.structs.replace(SETTINGS, epochs=1 + times))
        if not times:  # killed with a batch on its way
            x = np.zeros((2, 16, 16), np.float32)
            encoder.set_place(0, 0, 9)
            encoder.forward({"e": x}, {"seed": np.array(1)}, {})
    encoder.finish_round()
    start = transfer(bundle.manifest.table, bundle.weights, bundle.manifest.encoder_table)
    np.testing.assert_array_equal(server.deltas["a"], start - bundle.parts(bundle.whole()[0])[0])


def test_a_batch_that_was_on_its_way_is_dropped_when_the_device_goes_on(bundle):
    """Killed between a representation and its gradient, after a checkpoint of all steps before."""
    server = bundle.server()
    encoder = remote(bundle, Channel(server))
    x = np.zeros((2, 16, 16), np.float32)
    encoder.forward({"e": x}, {"seed": np.array(1)}, {})
    again = remote(bundle, Channel(server))
    train(bundle.device(again), bundle.split, SETTINGS)
    again.finish_round()
    start = transfer(bundle.manifest.table, bundle.weights, bundle.manifest.encoder_table)
    np.testing.assert_array_equal(server.deltas["a"], start - bundle.parts(bundle.whole()[0])[0])


def test_a_graph_that_fails_ends_the_devices_round(bundle):
    def broken(name):
        raise EngineError(f"{name} cannot be loaded")

    start = transfer(bundle.manifest.table, bundle.weights, bundle.manifest.encoder_table)
    encoder = remote(bundle, Channel(EncoderServer(bundle.manifest, broken, start, SETTINGS, 7)))
    with pytest.raises(EncoderServerUnavailable, match=r"encoder.0.forward cannot be loaded"):
        train(bundle.device(encoder), bundle.split, SETTINGS)


def test_an_encoder_server_that_started_again_has_no_session(bundle):
    with pytest.raises(EncoderServerUnavailable, match="begin at 0: this device has no session"):
        remote(bundle, Channel(bundle.server()), step=3)


def test_an_encoder_server_without_reply_is_given_up(bundle):
    class Nobody:
        def on_message(self, *_):
            return []

    channel = Channel(Nobody())
    with pytest.raises(EncoderServerUnavailable, match="no reply for 60 s"):
        remote(bundle, channel, deadline_s=60.0)
    assert len(channel.sent) == 12


def test_a_full_encoder_server_gets_the_request_until_a_place_is_free(bundle):
    server = bundle.server(max_devices=1, idle_s=20.0)
    remote(bundle, Channel(server, "a"))
    channel = Channel(server, "b")
    sending = channel.send

    def send(data):
        server.on_tick(channel.now_s)
        sending(data)

    channel.send = send
    remote(bundle, channel)
    assert channel.now_s >= 20
    assert server.active_devices == ("b",)


def test_the_round_goes_on_without_a_silent_device(bundle):
    server = bundle.server(idle_s=30.0)
    first, second = (remote(bundle, Channel(server, name)) for name in ("a", "b"))
    device = bundle.device(first)
    server.on_message("b", encode(SplitMessage(header=SplitHeader(kind="begin", round=7, seed=1))), 25.0)
    assert server.on_tick(40.0)[0][0] == "a"
    assert server.active_devices == ("b",)
    with pytest.raises(EncoderServerUnavailable, match="goes on without this device"):
        train(device, bundle.split, SETTINGS)
    second.finish_round()
    assert list(server.deltas) == ["b"]


def test_what_is_not_understood_is_refused_and_counted(bundle):
    server = bundle.server()
    ((device, reply),) = server.on_message("a", b"\xff\xffnonsense", 0.0)
    assert (device, server.errors["a"], server.active_devices) == ("a", 1, ())
    assert b"a header of 65535" in reply


def test_weights_that_have_diverged_on_the_encoder_server_end_the_devices_round(bundle):
    server = bundle.server()
    encoder = remote(bundle, Channel(server))
    server._replicas["a"].weights[:] = np.nan
    with pytest.raises(EncoderServerUnavailable, match="training has diverged"):
        train(bundle.device(encoder), bundle.split, SETTINGS)


def test_gradients_that_are_not_finite_are_not_sent(bundle):
    channel = Channel(bundle.server())
    encoder = remote(bundle, channel)
    x = np.zeros((2, 16, 16), np.float32)
    done = encoder.forward({"e": x}, {"seed": np.array(1)}, {})
    with pytest.raises(EncoderServerUnavailable, match="the gradient is not finite"):
        encoder.backward(done, tuple(np.full_like(z, np.nan) for z in done.z), {}, {})


def test_replies_to_something_else_are_passed_over(bundle):
    """Rubbish, another round's reply and an old refusal come first."""
    channel = Channel(bundle.server())
    strangers = [
        b"rubbish",
        encode(SplitMessage(header=SplitHeader(kind="ready", round=6))),
        encode(SplitMessage(header=SplitHeader(kind="refused", round=7, about="gradient", reason="unknown"))),
        encode(SplitMessage(header=SplitHeader(kind="marked", round=7))),
    ]
    receive = channel.receive
    channel.receive = lambda timeout_s: strangers.pop(0) if strangers else receive(timeout_s)
    remote(bundle, channel)
    assert strangers == []


def test_proximal_term_and_clipping_are_of_the_encoder_alone(bundle):
    settings = msgspec.structs.replace(SETTINGS, proximal_mu=0.5, clip_norm=0.01, momentum=0.0, weight_decay=0.0)
    server = bundle.server(settings)
    encoder = remote(bundle, Channel(server))
    train(bundle.device(encoder), bundle.split, settings)
    encoder.finish_round()
    assert np.linalg.norm(server.deltas["a"]) <= 10 * settings.lr * 0.01 * 1.01


def test_settings_that_need_the_encoder_are_refused():
    check_settings(SETTINGS)
    check_settings(msgspec.structs.replace(SETTINGS, probe_every=3, probe="representation"))
    with pytest.raises(EncoderServerUnavailable, match="'exact' needs the encoder"):
        check_settings(msgspec.structs.replace(SETTINGS, probe_every=3))
