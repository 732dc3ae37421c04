import itertools
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.tensors import (
    MAX_ELEMENTS,
    MAX_ENTRY_BYTES,
    MAX_TENSORS,
    Tensor,
    TensorTable,
    file_parts,
    pack,
    part_of,
    replaced,
    transfer,
    unpack,
    unpack_known,
)

PART = st.sampled_from(["encoder", "head.a", "head.a_b", "head.a0", "head.depth"])
NAME = st.builds("{}.{}".format, PART, st.from_regex(r"[A-Za-z0-9_.]{1,12}", fullmatch=True))
SHAPE = st.lists(st.integers(1, 4), max_size=4).map(tuple)
TABLES = st.dictionaries(NAME, SHAPE, min_size=1, max_size=8).map(TensorTable.of)
TABLE = TensorTable.of({"encoder.w": (2, 3), "encoder.b": (), "head.depth.w": (4,)})
VECTOR = np.arange(11, dtype=np.float32)
FILE = pack(TABLE, VECTOR)


@st.composite
def tables_with_vectors(draw):
    table = draw(TABLES)
    bits = draw(st.binary(min_size=4 * table.size, max_size=4 * table.size))
    vector = np.frombuffer(bits, np.float32).copy()
    vector[~np.isfinite(vector)] = -0.0
    return table, vector


@given(tables_with_vectors())
def test_pack_and_unpack_are_inverse_bit_for_bit(case):
    table, vector = case
    data = pack(table, vector)
    assert data.endswith(vector.tobytes())
    result = unpack(table, data)
    assert result.tobytes() == vector.tobytes()
    assert result.flags.aligned
    assert not result.flags.writeable
    assert pack(table, vector.copy()) == data


@given(tables_with_vectors())
def test_pack_writes_what_the_format_s_own_reader_reads(case):
    table, vector = case
    loaded = safetensors.numpy.load(pack(table, vector))
    views = table.views(vector)
    assert loaded.keys() == views.keys()
    assert all(loaded[name].tobytes() == view.tobytes() for name, view in views.items())


@given(tables_with_vectors())
def test_pack_is_what_the_format_s_own_writer_writes(case):
    table, vector = case
    assert pack(table, vector) == safetensors.numpy.save(table.views(vector))
    header, data = file_parts(table, vector)
    assert data.obj is vector
    assert pack(table, vector) == header + bytes(data)


@given(tables_with_vectors(), st.data())
def test_unpack_of_any_prefix_is_invalid(case, data):
    table, vector = case
    content = pack(table, vector)
    with pytest.raises(TensorsInvalid):
        unpack(table, content[: data.draw(st.integers(0, len(content) - 1))])


def test_unpack_of_every_prefix_of_a_file_is_invalid():
    for end in range(len(FILE)):
        with pytest.raises(TensorsInvalid):
            unpack(TABLE, FILE[:end])


def test_unpack_with_any_header_byte_altered_is_invalid_or_the_same():
    for position in range(len(FILE) - VECTOR.nbytes):
        for value in range(256):
            content = bytearray(FILE)
            content[position] = value
            try:
                result = unpack(TABLE, bytes(content))
            except TensorsInvalid:
                continue
            assert result.tobytes() == VECTOR.tobytes()


def with_header(header, data=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + (VECTOR.tobytes() if data is None else data)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = {"encoder.b": entry([], 0, 4), "encoder.w": entry([2, 3], 4, 28), "head.depth.w": entry([4], 28, 44)}


def test_unpack_takes_another_writer_s_file():
    assert unpack(TABLE, with_header(GOOD)).tobytes() == VECTOR.tobytes()


@given(st.binary(max_size=200), st.binary(max_size=60))
@example(b"[" * 2000, VECTOR.tobytes())
@example(b'{"\xff":1}', VECTOR.tobytes())
def test_unpack_of_random_bytes_is_invalid(header, data):
    for content in (header + data, with_header(header, data), with_header(header)):
        with pytest.raises(TensorsInvalid):
            unpack(TABLE, content)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"encoder.b": entry([1], 0, 4)}, "'encoder.b' is described as"),
        ({"encoder.b": entry([], 0, 4, "F16")}, "'encoder.b' is described as"),
        ({"encoder.b": entry([], 0, 4, "F64")}, "not a tensor file"),
        ({"encoder.b": entry([], 0, 8)}, "'encoder.b' is described as"),
        ({"encoder.w": entry([3, 2], 4, 28)}, "'encoder.w' is described as"),
        ({"encoder.w": entry([10**4000], 4, 28)}, "a header of|not a tensor file"),
        ({"encoder.w": entry([-2, -3], 4, 28)}, "not a tensor file"),
        ({"x": entry([], 0, 4)}, "tensor 'x' is in the file or in the table"),
        ({"__metadata__": {"format": "pt"}}, "not a tensor file"),
    ],
)
def test_unpack_of_another_header_is_invalid(change, sentence):
    with pytest.raises(TensorsInvalid, match=sentence):
        unpack(TABLE, with_header({**GOOD, **change}))


def test_unpack_of_a_file_without_a_tensor_is_invalid():
    with pytest.raises(TensorsInvalid, match="'encoder.b' is in the file or in the table"):
        unpack(TABLE, with_header({k: v for k, v in GOOD.items() if k != "encoder.b"}))


def test_unpack_refuses_a_header_out_of_proportion_or_out_of_line():
    huge = (MAX_ENTRY_BYTES * 4 + 8).to_bytes(8, "little") + b" " * 10_000
    with pytest.raises(TensorsInvalid, match="with a header of 2056"):
        unpack(TABLE, huge)
    text = json.dumps(GOOD).encode()
    text += b" " * (-len(text) % 8 + 3)
    with pytest.raises(TensorsInvalid, match="multiple of 8"):
        unpack(TABLE, len(text).to_bytes(8, "little") + text + VECTOR.tobytes())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_unpack_refuses_a_value_that_is_not_finite(value):
    vector = VECTOR.copy()
    vector[7] = value
    with pytest.raises(TensorsInvalid, match="not finite"):
        unpack(TABLE, pack(TABLE, vector))


def test_table_refuses_what_is_not_a_layout():
    first = Tensor(name="a", shape=(2,), offset=0)
    cases = {
        "1 to 20000 tensors": [],
        "not 20001": [first] * (MAX_TENSORS + 1),
        "order of names": [first, Tensor(name="a", shape=(1,), offset=2)],
        "at offset 3 instead of 2": [first, Tensor(name="b", shape=(1,), offset=3)],
        "more than": [Tensor(name="a", shape=(MAX_ELEMENTS, MAX_ELEMENTS), offset=0)],
    }
    for sentence, tensors in cases.items():
        with pytest.raises(TensorsInvalid, match=sentence):
            TensorTable(tensors)


@given(TABLES)
def test_parts_are_contiguous_and_cover_the_vector(table):
    bounds = list(table.parts.values())
    assert bounds[0].start == 0
    assert bounds[-1].stop == table.size
    assert all(a.stop == b.start for a, b in itertools.pairwise(bounds))
    for tensor in table.tensors:
        part = table.parts[tensor.part]
        assert part.start <= tensor.offset
        assert tensor.offset + tensor.size <= part.stop


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.a.b", "encoder"),
        ("head.depth.w", "head.depth"),
        ("head", "head"),
        ("x", "x"),
        ("state.encoder.a.mean", "state.encoder"),
        ("state.head.a.norm.mean", "state.head.a"),
        ("state", "state"),
    ],
)
def test_part_of_takes_one_level_or_two_for_a_head(name, part):
    assert part_of(name) == part


def test_part_that_a_table_lacks_is_nowhere():
    table = TensorTable.of({"head.depth.w": (3,)})
    assert table.where("head.depth") == slice(0, 3)
    assert table.where("encoder") == slice(0, 0)


def test_views_are_no_copies():
    vector = VECTOR.copy()
    TABLE.views(vector)["head.depth.w"][...] = 7
    assert (vector[7:] == 7).all()


@pytest.mark.parametrize("vector", [VECTOR.astype(np.float64), VECTOR[:-1], VECTOR.reshape(1, -1)])
def test_check_refuses_another_type_or_shape(vector):
    with pytest.raises(TensorsInvalid, match="a float32 vector of 11 elements is needed"):
        TABLE.check(vector)


def test_select_keeps_some_parts_and_refuses_others():
    assert [t.name for t in TABLE.select(["head.depth"]).tensors] == ["head.depth.w"]
    with pytest.raises(TensorsInvalid, match="no part 'head.normals'"):
        TABLE.select(["encoder", "head.normals"])


@given(tables_with_vectors(), st.data())
def test_transfer_to_some_parts_and_back_changes_nothing(case, data):
    table, vector = case
    parts = data.draw(st.sets(st.sampled_from(sorted(table.parts)), min_size=1))
    target = table.select(parts)
    moved = transfer(table, vector, target)
    assert all(view.tobytes() == table.views(vector)[name].tobytes() for name, view in target.views(moved).items())
    assert transfer(target, moved, target).tobytes() == moved.tobytes()


def test_transfer_refuses_what_the_source_lacks():
    for shapes in ({"encoder.w": (3, 2)}, {"encoder.x": (1,)}):
        with pytest.raises(TensorsInvalid, match="is not in the source"):
            transfer(TABLE, VECTOR, TensorTable.of(shapes))


def test_parameters_are_the_front_of_the_vector_and_state_is_not_among_them():
    table = TensorTable.of({"state.encoder.m": (2,), "encoder.w": (3,), "state.head.a.m": (1,), "head.a.w": (4,)})
    assert [tensor.name for tensor in table.parameters.tensors] == ["encoder.w", "head.a.w"]
    assert table.parameters.size == 7
    assert list(table.parts) == ["encoder", "head.a", "state.encoder", "state.head.a"]
    assert TABLE.parameters.tensors == TABLE.tensors
    with pytest.raises(TensorsInvalid, match="offset"):
        _ = TensorTable.of({"state.encoder.m": (2,), "x.w": (3,)}).parameters


def test_unpack_known_finds_what_a_table_has_in_the_same_shape():
    file = TensorTable.of({"head.a.w": (2,), "head.b.w": (3,), "stem.w": (1,)})
    data = pack(file, np.arange(6, dtype=np.float32))
    table, vector = unpack_known(TensorTable.of({"encoder.w": (1,), "head.a.w": (2,), "head.b.w": (4,)}), data)
    assert [tensor.name for tensor in table.tensors] == ["head.a.w"]
    np.testing.assert_array_equal(vector, [0, 1])
    assert unpack_known(TensorTable.of({"encoder.w": (1,)}), data) is None
    with pytest.raises(TensorsInvalid):
        unpack_known(file, data[:-4])


def test_replaced_changes_the_tensors_of_the_source_alone():
    table = TensorTable.of({"encoder.w": (2,), "head.a.w": (2,)})
    old = np.zeros(4, np.float32)
    new = replaced(table, old, table.select(["head.a"]), np.ones(2, np.float32))
    np.testing.assert_array_equal(new, [0, 0, 1, 1])
    np.testing.assert_array_equal(old, 0)
