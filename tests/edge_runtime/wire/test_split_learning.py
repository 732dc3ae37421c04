import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.manifest import Array
from edge_runtime.wire.split_learning import MAX_HEADER_BYTES, MessageLayout, SplitHeader, SplitMessage, decode, encode

LAYOUT = MessageLayout(embedding=(3, 2), representation=((4,), (2, 2)), max_samples=5)
PRECISIONS = ("fp32", "fp16", "int8")


def message(kind="gradient", samples=3, precision="fp32", scale=1.0, seed=0, **fields):
    random = np.random.default_rng(seed)
    shapes = LAYOUT.shapes(kind)
    arrays = tuple((scale * random.standard_normal((samples, *shape))).astype(np.float32) for shape in shapes)
    header = SplitHeader(
        kind=kind, round=2, step=7, part=1, samples=samples if shapes else 0, precision=precision, **fields
    )
    return SplitMessage(header=header, arrays=arrays)


def raw(header, payload=b""):
    data = header if isinstance(header, bytes) else msgspec.json.encode(header)
    return len(data).to_bytes(2, "little") + data + payload


@given(st.sampled_from(["embedding", "probe", "representation", "gradient", "return"]), st.integers(1, 5))
def test_arrays_in_fp32_come_as_they_went(kind, samples):
    sent = message(kind, samples)
    came = decode(LAYOUT, encode(sent))
    assert came.header == sent.header
    assert [a.tobytes() for a in came.arrays] == [a.tobytes() for a in sent.arrays]
    assert all(array.flags.writeable for array in came.arrays)


@pytest.mark.parametrize("kind", ["begin", "ready", "mark", "marked", "finish", "finished", "refused"])
def test_messages_without_arrays_come_as_they_went(kind):
    header = SplitHeader(kind=kind, round=1, step=2, seed=2**62, about="begin", reason="full", detail="ö")
    assert decode(LAYOUT, encode(SplitMessage(header=header))) == SplitMessage(header=header)


@pytest.mark.parametrize("kind", ["embedding", "gradient", "refused"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_message_is_longer_than_the_longest(kind, precision):
    sent = message(kind, LAYOUT.max_samples, precision, about="embedding", detail="\u0001" * 500)
    assert len(encode(sent)) <= LAYOUT.max_message_bytes
    assert LAYOUT.max_message_bytes < 2 + MAX_HEADER_BYTES + 5 * 4 * 9


@given(st.integers(-25, 30), st.integers(0, 1000))
def test_rounded_arrays_are_near_on_the_scale_of_each_sample(power, seed):
    """However small or large: a gradient of 1e-25 is not lost, nor is a sample's beside one a million times larger."""
    for precision, error in (("fp16", 2.0**-11), ("int8", 0.5 / 127)):
        sent = message(precision=precision, scale=10.0**power, seed=seed)
        sent.arrays[0][0] *= np.float32(1e-6)
        came = decode(LAYOUT, encode(sent))
        for before, after in zip(sent.arrays, came.arrays, strict=True):
            rows, largest = before.reshape(len(before), -1), np.abs(before.reshape(len(before), -1)).max(axis=1)
            apart = np.abs(after.reshape(rows.shape) - rows).max(axis=1)
            assert (apart <= largest * error * 1.01).all()
            assert after.any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [0.0, 1e-42, -3.4e38, 3.4e38])
def test_extreme_values_are_taken(precision, value):
    sent = message(precision=precision)
    for array in sent.arrays:
        array[...] = value
    came = decode(LAYOUT, encode(sent))
    for array in came.arrays:
        np.testing.assert_allclose(array, np.float32(value), rtol=1e-2, atol=1e-38)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_size_of_a_message(precision):
    each = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    sent = message(precision=precision)
    assert LAYOUT.arrays_bytes(sent.header) == 3 * 8 * each + (0 if precision == "fp32" else 2 * 3 * 4)
    header = len(msgspec.json.encode(sent.header))
    assert len(encode(sent)) == 2 + header + LAYOUT.arrays_bytes(sent.header) == LAYOUT.message_bytes(sent.header)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_neither_sent_nor_taken(value):
    sent = message()
    data = bytearray(encode(sent))
    data[-4:] = np.float32(value).tobytes()
    with pytest.raises(MessageInvalid, match="of the gradient is not finite"):
        decode(LAYOUT, bytes(data))
    sent.arrays[1][0, 0, 0] = value
    with pytest.raises(MessageInvalid, match="training has diverged"):
        encode(sent)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scale_that_is_not_finite_is_refused(precision, scale):
    sent = message("embedding", 1, precision)
    data = bytearray(encode(sent))
    start = len(data) - LAYOUT.arrays_bytes(sent.header)
    data[start : start + 4] = np.float32(scale).tobytes()
    with pytest.raises(MessageInvalid, match="not finite"):
        decode(LAYOUT, bytes(data))


def test_every_prefix_and_one_byte_more_are_refused():
    data = encode(message())
    for end in range(len(data)):
        with pytest.raises(MessageInvalid):
            decode(LAYOUT, data[:end])
    with pytest.raises(MessageInvalid, match="3 samples has 96 bytes, not 97"):
        decode(LAYOUT, data + b"\0")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(MessageInvalid):
        decode(LAYOUT, data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(SplitHeader(kind="gradient", round=0)), "gradient with 0 samples"),
        (raw(SplitHeader(kind="gradient", round=0, samples=6)), "with 6 samples, at most 5"),
        (raw(SplitHeader(kind="begin", round=0, samples=1)), "begin with 1 samples"),
        (raw(b'{"kind":"images","round":0}'), "not understood"),
        (raw(b'{"kind":"begin","round":0,"image":1}'), "not understood"),
        (raw(b'{"kind":"begin","round":0,"part":1024}'), "not understood"),
        (raw(b"[" * 4000), "not understood"),
        (raw(b" " * (MAX_HEADER_BYTES + 1)), "a header of 4097"),
        (b"\0\0", "a header of 0"),
    ],
)
def test_hostile_messages_are_refused(data, reason):
    with pytest.raises(MessageInvalid, match=reason):
        decode(LAYOUT, data)


def test_layout_of_a_bundle_is_its_embedding_and_its_representation():
    class Described:
        embedding = Array(shape=(16, 8), dtype="float32")
        representation = (Array(shape=(4,), dtype="float32"), Array(shape=(2, 2), dtype="float32"))

    assert MessageLayout.of(Described, 7) == MessageLayout(
        embedding=(16, 8), representation=((4,), (2, 2)), max_samples=7
    )
