import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.wire.compression import (
    BLOCK,
    INT8_BELOW_BYTES_PER_S,
    MAX_HEADER_BYTES,
    TOPK_BELOW_BYTES_PER_S,
    Updates,
    choose,
    decode,
    encode,
    max_bytes,
    working_bytes,
)
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.tensors import TensorTable, pack

SHAPES = {"encoder.b": (), "encoder.w": (2, 3), "head.a.w": (4,)}
TABLE = TensorTable.of(SHAPES)
WITH_STATE = TensorTable.of(SHAPES | {"state.encoder.mean": (3,)})
SCHEMES = ("fp32", "fp16", "int8", "topk")
SMALL = ("fp16", "int8", "topk")
FEEDBACK = ("int8", "topk")
VALUES = st.floats(-1e4, 1e4, width=32)


def vectors(size):
    return st.lists(VALUES, min_size=size, max_size=size).map(lambda values: np.array(values, np.float32))


def send(table, received, trained, residual=None, *, scheme, fraction=0.3):
    data, left = encode(
        table, received=received, trained=trained, residual=residual, scheme=scheme, topk_fraction=fraction
    )
    return data, left, decode(table, data, scheme, received)


def drawn(table, seed=0, spread=0.01):
    chance = np.random.default_rng(seed)
    received = chance.normal(size=table.size).astype(np.float32)
    return received, received + chance.normal(scale=spread, size=table.size).astype(np.float32)


def with_arrays(arrays, **changes):
    found = {**arrays, **changes}
    return safetensors.numpy.save({name: value for name, value in found.items() if value is not None})


@pytest.mark.parametrize("fraction", [0.04, 0.5])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_encode_allocates_at_most_working_bytes(scheme, fraction):
    """Of one large tensor, whose steps are as long as the vector; the residual that came is counted, too."""
    table = TensorTable.of({"encoder.w": (1_000_000,), "state.encoder.mean": (1000,)})
    received, trained = drawn(table)
    residual = np.full(table.parameters.size, 0.01, np.float32) if scheme in FEEDBACK else None
    tracemalloc.start()
    try:
        send = {"scheme": scheme, "topk_fraction": fraction}
        encode(table, received=received, trained=trained, residual=residual, **send)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    most = working_bytes(table, Updates(**send))
    given = 0 if residual is None else residual.nbytes
    assert 0.6 * most < peak_bytes + given <= most + 2**16  # and small objects
    assert most <= working_bytes(table, Updates(scheme="auto", topk_fraction=fraction))


# What arrives


@pytest.mark.slow
@given(vectors(11), vectors(11))
def test_fp32_is_the_weights_in_full_bit_for_bit(received, trained):
    data, left, got = send(TABLE, received, trained, scheme="fp32")
    assert data == pack(TABLE, trained)
    assert got.tobytes() == trained.tobytes()
    assert left is None


@pytest.mark.slow
@given(vectors(11), vectors(11))
def test_fp16_is_as_near_as_half_precision_is(received, trained):
    _, left, got = send(TABLE, received, trained, scheme="fp16")
    assert left is None
    change = np.abs(trained.astype(np.float64) - received)
    assert (np.abs(got - trained) <= change * 2**-11 + 3e-8 + 2e-3).all()  # the last: float32 at 2e4
    np.testing.assert_array_equal(got[trained == received], received[trained == received])


@pytest.mark.slow
@given(vectors(14), vectors(14), vectors(11))
def test_int8_leaves_at_most_half_a_step_of_each_tensor(received, trained, residual):
    _, left, _ = send(WITH_STATE, received, trained, residual, scheme="int8")
    for tensor in WITH_STATE.parameters.tensors:
        where = slice(tensor.offset, tensor.offset + tensor.size)
        whole = trained[where] - received[where] + residual[where]
        assert np.abs(left[where]).max() <= np.abs(whole).max() / 254 * 1.0001 + 1e-35


@pytest.mark.slow
@given(vectors(11), vectors(11), st.integers(1, 5))
@example(np.zeros(11, np.float32), np.full(11, 7e-41, np.float32), 1)
def test_topk_sends_the_largest_changes_and_keeps_the_others(received, trained, k):
    data, left, _ = send(TABLE, received, trained, scheme="topk", fraction=k / 11 + 1e-6)
    arrays = safetensors.numpy.load(data)
    change = trained - received
    sent = np.zeros(11, bool)
    sent[arrays["index"]] = True
    too_small = np.abs(change).max() < np.finfo(np.float32).tiny  # for a scale: all of it waits
    assert len(arrays["index"]) == (0 if too_small else min(k, np.count_nonzero(change)))
    np.testing.assert_array_equal(left[~sent], change[~sent])
    if sent.any():
        assert np.abs(change[sent]).min() >= np.abs(change[~sent]).max(initial=0)
        assert (np.abs(left[sent]) <= np.abs(change[sent]) * 2**-11 + np.abs(change).max() * 1e-7 + 1e-44).all()


@pytest.mark.slow
@given(st.sampled_from(FEEDBACK), vectors(11), st.lists(vectors(11), min_size=1, max_size=6))
def test_error_feedback_loses_nothing_over_the_rounds(scheme, received, steps):
    """What has arrived and what is left add up to all changes that were made, up to float32's rounding."""
    residual, arrived, made = None, np.zeros(11), np.zeros(11)
    for step in steps:
        _, residual, got = send(TABLE, received, received + step, residual, scheme=scheme)
        arrived += got.astype(np.float64) - received
        made += (received + step).astype(np.float64) - received
    np.testing.assert_allclose(arrived + residual, made, rtol=0, atol=0.1)


@pytest.mark.slow
@given(st.sampled_from(SCHEMES), vectors(14), vectors(14))
def test_state_is_sent_in_full_by_every_scheme(scheme, received, trained):
    _, left, got = send(WITH_STATE, received, trained, scheme=scheme)
    assert got[11:].tobytes() == trained[11:].tobytes()
    assert left is None or left.shape == (11,)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_residual_is_taken_up_by_every_scheme(scheme):
    received = np.zeros(14, np.float32)
    residual = np.full(11, 0.5, np.float32)
    _, left, got = send(WITH_STATE, received, received, residual, scheme=scheme, fraction=0.5)
    expected = residual if left is None else residual - left
    np.testing.assert_allclose(got[:11], expected, atol=1e-6)
    assert got[:11].any()
    assert not got[11:].any()
    assert not received.any()  # what was given is not changed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_encode_repeats_its_bytes_and_leaves_its_arguments(scheme):
    received, trained = drawn(WITH_STATE)
    residual = np.full(11, 1e-3, np.float32)
    before = [vector.tobytes() for vector in (received, trained, residual)]
    first = send(WITH_STATE, received, trained, residual, scheme=scheme)
    again = send(WITH_STATE, received, trained, residual, scheme=scheme)
    assert first[0] == again[0]
    assert [vector.tobytes() for vector in (received, trained, residual)] == before


@pytest.mark.parametrize("scheme", SMALL)
def test_no_change_arrives_as_no_change(scheme):
    received, _ = drawn(TABLE)
    _, left, got = send(TABLE, received, received.copy(), scheme=scheme)
    assert got.tobytes() == received.tobytes()
    assert left is None or not left.any()


@pytest.mark.parametrize("scheme", FEEDBACK)
def test_change_too_small_for_a_scale_waits_in_the_residual(scheme):
    received = np.zeros(11, np.float32)
    trained = np.full(11, 1e-42, np.float32)
    _, left, got = send(TABLE, received, trained, scheme=scheme)
    assert not got.any()
    np.testing.assert_array_equal(left, trained)


def test_topk_of_equal_changes_sends_the_first():
    received = np.zeros(11, np.float32)
    data, _, _ = send(TABLE, received, received + 1, scheme="topk", fraction=0.3)
    assert safetensors.numpy.load(data)["index"].tolist() == [0, 1, 2]


def test_topk_reaches_every_block():
    table = TensorTable.of({"encoder.w": (BLOCK + 2,), "head.a.w": (BLOCK,)})
    received = np.zeros(table.size, np.float32)
    trained = received.copy()
    places = [0, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1]
    trained[places] = np.arange(1, 9)
    data, left, got = send(table, received, trained, scheme="topk", fraction=8 / table.size)
    arrays = safetensors.numpy.load(data)
    assert arrays["count"].tolist() == [3, 3, 2]
    assert arrays["index"].tolist() == [place % BLOCK for place in places]
    np.testing.assert_allclose(got, trained, atol=8 * 2**-11)
    np.testing.assert_allclose(left, trained - got, atol=1e-6)


def test_small_updates_are_as_small_as_they_claim():
    shapes = {f"encoder.{n}.w": (64, 64) for n in range(60)} | {f"head.a.{n}": (32,) for n in range(100)}
    table = TensorTable.of(shapes)
    received, trained = drawn(table)
    full = len(pack(table, trained))
    sizes = {scheme: len(send(table, received, trained, scheme=scheme, fraction=0.04)[0]) for scheme in SMALL}
    assert sizes["fp16"] <= 0.505 * full
    assert sizes["int8"] <= 0.255 * full
    assert sizes["topk"] <= 0.05 * full
    assert all(size <= max_bytes(full) for size in sizes.values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_update_of_a_tiny_model_is_within_the_cap(scheme):
    table = TensorTable.of({"a": (), "state.a": (1,)})
    received, trained = drawn(table)
    data, _, _ = send(table, received, trained, scheme=scheme, fraction=0.5)
    assert len(data) <= max_bytes(len(pack(table, trained)))


# What is refused


@pytest.mark.parametrize("scheme", SMALL)
@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
def test_encode_refuses_a_change_that_is_not_finite(scheme, value):
    received = np.full(11, -3e38, np.float32)
    trained = received.copy()
    trained[4] = value
    with pytest.raises(TensorsInvalid, match="not finite"):
        encode(TABLE, received=received, trained=trained, residual=None, scheme=scheme, topk_fraction=0.1)


def test_encode_refuses_a_residual_that_takes_fp32_to_infinity():
    trained, residual = np.full(11, 3e38, np.float32), np.full(11, 3e38, np.float32)
    with pytest.raises(TensorsInvalid, match="not finite"):
        encode(TABLE, received=trained, trained=trained, residual=residual, scheme="fp32", topk_fraction=0.1)


def test_encode_refuses_a_change_that_fp16_does_not_hold():
    received = np.zeros(11, np.float32)
    with pytest.raises(TensorsInvalid, match="65,504"):
        send(TABLE, received, received + np.float32(70_000), scheme="fp16")


@pytest.mark.parametrize("which", ["received", "trained", "residual"])
def test_encode_refuses_vectors_of_another_length(which):
    given = dict.fromkeys(("received", "trained", "residual"), np.zeros(11, np.float32)) | {
        which: np.zeros(12, np.float32)
    }
    with pytest.raises(TensorsInvalid, match="12"):
        encode(TABLE, **given, scheme="int8", topk_fraction=0.1)


def test_decode_refuses_received_weights_of_another_length():
    received, trained = drawn(TABLE)
    data, _, _ = send(TABLE, received, trained, scheme="int8")
    with pytest.raises(TensorsInvalid):
        decode(TABLE, data, "int8", received[:-1])


FILES = {scheme: send(WITH_STATE, *drawn(WITH_STATE), scheme=scheme)[0] for scheme in SMALL}
GIVEN = drawn(WITH_STATE)[0]


@pytest.mark.parametrize("scheme", SMALL)
def test_decode_of_every_prefix_is_refused(scheme):
    for end in range(len(FILES[scheme])):
        with pytest.raises(TensorsInvalid):
            decode(WITH_STATE, FILES[scheme][:end], scheme, GIVEN)


@pytest.mark.parametrize("scheme", SMALL)
def test_decode_with_any_byte_altered_is_refused_or_finite(scheme):
    for position in range(len(FILES[scheme])):
        for value in (0, 1, 0x22, 0x7F, 0x80, 0xFF):
            content = bytearray(FILES[scheme])
            content[position] = value
            try:
                found = decode(WITH_STATE, bytes(content), scheme, GIVEN)
            except TensorsInvalid:
                continue
            assert found.shape == GIVEN.shape
            assert np.isfinite(found).all()


@pytest.mark.parametrize("scheme", SMALL)
@pytest.mark.parametrize("other", SCHEMES)
def test_decode_refuses_the_file_of_another_scheme(scheme, other):
    data = pack(WITH_STATE, GIVEN) if other == "fp32" else FILES[other]
    if other != scheme:
        with pytest.raises(TensorsInvalid):
            decode(WITH_STATE, data, scheme, GIVEN)


@given(st.sampled_from(SMALL), st.binary(max_size=200), st.binary(max_size=60))
@example("int8", b"[" * 900, b"")
@example("topk", b'{"\xff":1}', b"")
def test_decode_of_random_bytes_is_refused(scheme, header, data):
    for content in (header + data, len(header).to_bytes(8, "little") + header + data):
        with pytest.raises(TensorsInvalid):
            decode(TABLE, content, scheme, GIVEN[:11])


def test_decode_refuses_a_header_out_of_proportion():
    text = json.dumps({"delta": {"dtype": "F16", "shape": [11], "data_offsets": [0, 22]}}).encode()
    padded = text + b" " * (MAX_HEADER_BYTES + 1 - len(text))
    with pytest.raises(TensorsInvalid, match="header of 1025"):
        decode(TABLE, len(padded).to_bytes(8, "little") + padded + bytes(22), "fp16", GIVEN[:11])
    found = decode(TABLE, len(text).to_bytes(8, "little") + text + bytes(22), "fp16", GIVEN[:11])
    assert found.tobytes() == GIVEN[:11].tobytes()


INT8 = safetensors.numpy.load(FILES["int8"])
TOPK = safetensors.numpy.load(FILES["topk"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale": np.array([1, np.nan, 1], np.float32)}, "scale"),
        ({"scale": np.array([1, np.inf, 1], np.float32)}, "scale"),
        ({"scale": np.array([1, -1, 1], np.float32)}, "scale"),
        ({"scale": np.array([1, 3e38, 1], np.float32), "delta": np.full(11, 127, np.int8)}, "not finite"),
        ({"scale": np.ones(2, np.float32)}, r"F32 \(2,\), not F32 \(3,\)"),
        ({"scale": np.ones(3, np.uint32)}, "U32"),
        ({"scale": np.ones(3)}, "not a tensor file"),
        ({"delta": np.ones(10, np.int8)}, r"I8 \(10,\)"),
        ({"delta": np.ones((1, 11), np.int8)}, r"I8 \(1, 11\), not I8 \(11,\)"),
        ({"state": None}, "has, or lacks, an array 'state'"),
        ({"other": np.ones(1, np.float32)}, "has, or lacks, an array 'other'"),
        ({"state": np.array([1, np.nan, 1], np.float32)}, "not finite"),
    ],
)
def test_decode_refuses_a_hostile_int8_file(changes, sentence):
    with pytest.raises(TensorsInvalid, match=sentence):
        decode(WITH_STATE, with_arrays(INT8, **changes), "int8", GIVEN)


U16, F16, U32 = np.uint16, np.float16, np.uint32


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"index": np.array([1, 1, 3], U16)}, "do not ascend"),
        ({"index": np.array([3, 2, 1], U16)}, "do not ascend"),
        ({"index": np.array([1, 2, 11], U16)}, "leave it"),
        ({"index": np.array([1, 2], U16)}, "2 indices, 3 values and counts of 3"),
        ({"value": np.ones(2, F16)}, "3 indices, 2 values"),
        ({"count": np.array([2], U32)}, "counts of 2"),
        ({"count": np.array([2**32 - 1], U32)}, "counts of 4294967295"),
        ({"count": np.array([1, 2], U32)}, r"U32 \(2,\)"),
        ({"value": np.array([1, np.nan, 1], F16)}, "not finite"),
        ({"value": np.array([1, np.inf, 1], F16)}, "not finite"),
        ({"scale": np.array([np.nan], np.float32)}, "scale"),
    ],
)
def test_decode_refuses_a_hostile_topk_file(changes, sentence):
    with pytest.raises(TensorsInvalid, match=sentence):
        decode(WITH_STATE, with_arrays(TOPK, **changes), "topk", GIVEN)


def test_decode_refuses_arrays_that_overlap_or_leave_gaps():
    def file(delta, scale, data=bytes(40)):
        header = {
            "delta": {"dtype": "I8", "shape": [11], "data_offsets": delta},
            "scale": {"dtype": "F32", "shape": [3], "data_offsets": scale},
        }
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    decode(TABLE, file([12, 23], [0, 12], bytes(23)), "int8", GIVEN[:11])
    decode(TABLE, file([0, 11], [11, 23], bytes(23)), "int8", GIVEN[:11])  # unaligned is allowed
    for delta, scale, sentence in (
        ([0, 11], [0, 12], "where the one before it ends"),
        ([0, 11], [12, 24], "where the one before it ends"),
        ([12, 24], [0, 12], "where the one before it ends"),
        ([12, 23], [0, 12], "17 bytes after its arrays"),
    ):
        with pytest.raises(TensorsInvalid, match=sentence):
            decode(TABLE, file(delta, scale), "int8", GIVEN[:11])
    with pytest.raises(TensorsInvalid, match="ends within array"):
        decode(TABLE, file([12, 23], [0, 12], bytes(20)), "int8", GIVEN[:11])


# Which scheme


@pytest.mark.parametrize("scheme", SCHEMES)
def test_choose_follows_the_server(scheme):
    assert choose(Updates(scheme=scheme), 1.0) == scheme
    assert choose(Updates(scheme=scheme), None) == scheme


def test_choose_goes_by_the_link_where_it_may():
    auto = Updates(scheme="auto")
    assert choose(auto, None) == "fp32"
    assert choose(auto, INT8_BELOW_BYTES_PER_S) == "fp32"
    assert choose(auto, INT8_BELOW_BYTES_PER_S - 1) == "int8"
    assert choose(auto, TOPK_BELOW_BYTES_PER_S) == "int8"
    assert choose(auto, TOPK_BELOW_BYTES_PER_S - 1) == "topk"
