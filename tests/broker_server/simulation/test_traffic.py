import msgspec
import pytest
import samples

from broker_server.simulation.network import LinkSpeed
from broker_server.simulation.traffic import Traffic, traffic_of
from edge_runtime.wire.manifest import Array, Manifest, Parity
from edge_runtime.wire.messages import SplitLearning

TRAINING = samples.training(epochs=2, batch=10)
NONE = dict.fromkeys(("tasks", "values", "stages", "tensors"), ())
MANIFEST = Manifest(
    format=2,
    name="m",
    input=Array(dtype="float32", shape=(3, 8, 8)),
    embedding=Array(dtype="float32", shape=(100,)),
    representation=(Array(dtype="float32", shape=(30,)), Array(dtype="float32", shape=(10, 2))),
    graphs={},
    weights=samples.blob(),
    opset=18,
    parity=Parity(max_relative_error=0.0, worst="", compared=0),
    versions={},
    **NONE,
)
EXAMPLES = {"train": 24, "val": 20, "test": 33}
MOST_HEADER_BYTES = 200


def plan(precision="fp32", **changes):
    given = {"training": TRAINING, "split_learning": SplitLearning(precision=precision), **changes}
    return samples.plan(3, **given)


def test_nothing_crosses_where_the_device_has_the_encoder():
    assert traffic_of(plan(split_learning=None), EXAMPLES, MANIFEST) is None


@pytest.mark.parametrize(("precision", "each", "scales"), [("fp32", 4, 0), ("fp16", 2, 4), ("int8", 1, 4)])
def test_crossing_of_training_is_every_batch_and_validation(precision, each, scales):
    found = traffic_of(plan(precision), EXAMPLES, MANIFEST)
    # Two epochs of 10, 10 and 4; 16 + 4 to validate, at most a batch of 10 at once: 10, 6 and 4.
    trained, judged, steps, probes = 48, 20, 6, 3
    e, z = each * 100 + scales, each * 50 + 2 * scales
    assert found.messages == 2 * (2 + 2 * steps + probes)
    extra = found.up_bytes - (trained * (e + z) + judged * e)
    assert 0 < extra < (2 + 2 * steps + probes) * MOST_HEADER_BYTES
    extra = found.down_bytes - (trained * (e + z) + judged * z)
    assert 0 < extra < (2 + 2 * steps + probes) * MOST_HEADER_BYTES


def test_crossing_of_an_evaluation_is_its_split():
    measuring = plan(work="evaluate", training=None, data_split="test")
    found = traffic_of(measuring, EXAMPLES, MANIFEST)
    assert found.messages == 2 * (2 + 3)
    assert 0 < found.up_bytes - 33 * 400 < 5 * MOST_HEADER_BYTES
    assert 0 < found.down_bytes - 33 * 200 < 5 * MOST_HEADER_BYTES
    assert traffic_of(measuring, {}, MANIFEST).messages == 4


def test_crossing_of_a_step_in_parts_has_more_messages_about_the_same_samples():
    whole, halves = (
        traffic_of(plan(split_learning=SplitLearning(parts=parts)), EXAMPLES, MANIFEST) for parts in (1, 2)
    )
    assert (
        halves.messages - whole.messages == 2 * 4 * 2
    )  # the four batches of ten come in two parts, those of four in one
    assert 0 < halves.up_bytes - whole.up_bytes < 8 * MOST_HEADER_BYTES


def test_crossing_of_more_epochs_is_more():
    longer = plan(training=msgspec.structs.replace(TRAINING, epochs=3))
    assert traffic_of(longer, EXAMPLES, MANIFEST).up_bytes > traffic_of(plan(), EXAMPLES, MANIFEST).up_bytes


def test_seconds_are_bytes_over_speed_and_a_latency_for_each_message():
    link = LinkSpeed(up_bytes_per_s=10.0, down_bytes_per_s=50.0, latency_s=0.5)
    assert Traffic(up_bytes=20, down_bytes=100, messages=6).seconds(link) == pytest.approx(2.0 + 2.0 + 3.0)
    assert Traffic(up_bytes=20, down_bytes=100, messages=6).seconds(LinkSpeed()) == 0.0
