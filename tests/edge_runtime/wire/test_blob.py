import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.wire.blob import MAX_BLOB_BYTES, Assembly, Blob, BlobStore, ChunkRun, describe
from edge_runtime.wire.errors import BlobInvalid

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
DATA = bytes(range(256)) * 17  # 4,352 bytes: four chunks of 1,024 and one of 256
BLOB = describe(DATA, chunk_bytes=1024)


def part(data, blob, index):
    return data[index * blob.chunk_bytes : (index + 1) * blob.chunk_bytes]


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


@SHARED_FOLDER
@given(data=st.binary(min_size=1, max_size=6000), draw=st.data())
def test_assembly_takes_any_order_repetition_and_restart(store, data, draw):
    blob = describe(data, chunk_bytes=1024)
    store.discard(blob.digest)
    order = draw.draw(st.permutations(range(blob.chunks)))
    repeated = draw.draw(st.lists(st.sampled_from(range(blob.chunks)), max_size=8))
    restarts = draw.draw(st.sets(st.integers(0, 20)))
    assembly = Assembly(store, blob)
    completed = []
    for step, index in enumerate([*repeated, *order]):
        if step in restarts:
            assembly = Assembly(store, blob)
        completed.append(assembly.accept(index, part(data, blob, index)))
        assert not any(run.first <= index < run.end for run in assembly.missing())
    assert completed.count(True) == 1
    assert assembly.is_complete
    assert assembly.missing() == ()
    assert store.read(blob.digest) == data
    assert b"".join(store.run(blob, ChunkRun(index, 1)) for index in range(blob.chunks)) == data
    assert store.run(blob, ChunkRun(0, blob.chunks)) == data
    assert list(store.digests()) == [blob.digest]
    assert not assembly.accept(0, part(data, blob, 0))
    store.discard(blob.digest)
    assert list(store.root.iterdir()) == []


@SHARED_FOLDER
@given(position=st.integers(0, len(DATA) - 1), flip=st.integers(1, 255))
def test_assembly_of_corrupt_content_is_dropped_and_fetched_again(store, position, flip):
    store.discard(BLOB.digest)
    corrupt = bytearray(DATA)
    corrupt[position] ^= flip
    assembly = Assembly(store, BLOB)
    for index in range(4):
        assert not assembly.accept(index, part(corrupt, BLOB, index))
    with pytest.raises(BlobInvalid, match="has another SHA-256; it was dropped"):
        assembly.accept(4, part(corrupt, BLOB, 4))
    assert not assembly.is_complete
    assert BLOB.digest not in store
    assert assembly.missing() == Assembly(store, BLOB).missing() == (ChunkRun(0, 5),)
    assert [assembly.accept(index, part(DATA, BLOB, index)) for index in range(5)] == [False] * 4 + [True]


def test_assembly_takes_runs_and_misses_runs(store):
    assembly = Assembly(store, BLOB)
    assembly.accept(1, part(DATA, BLOB, 1))
    assert assembly.missing() == (ChunkRun(0, 1), ChunkRun(2, 3))
    assert not assembly.accept(0, DATA[:3072])  # one of its chunks is here
    assert assembly.missing() == Assembly(store, BLOB).missing() == (ChunkRun(3, 2),)
    assert assembly.accept(3, DATA[3072:])
    assert store.read(BLOB.digest) == DATA


@pytest.mark.parametrize(("first", "length"), [(0, 4353), (1, 3329), (3, 2048), (0, 4095), (4, 512)])
def test_a_run_that_the_blob_does_not_have_is_refused(first, length):
    with pytest.raises(BlobInvalid, match=f"{length} bytes from chunk {first} on are no run"):
        BLOB.run_at(first, length)


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_assembly_refuses_an_index_that_cannot_be(store, index):
    with pytest.raises(BlobInvalid, match="has 5 chunks, so there is no chunk"):
        Assembly(store, BLOB).accept(index, b"x" * 1024)


@pytest.mark.parametrize(("index", "length"), [(0, 0), (0, 1023), (0, 1025), (4, 255), (4, 1024)])
def test_assembly_refuses_a_length_that_cannot_be(store, index, length):
    with pytest.raises(BlobInvalid, match=f"{length} bytes from chunk {index} on are no run"):
        Assembly(store, BLOB).accept(index, b"x" * length)
    assert list(store.root.iterdir()) == []


def test_assembly_claims_no_disk_before_the_first_chunk(store):
    big = Blob(digest="0" * 64, size_bytes=MAX_BLOB_BYTES, chunk_bytes=1024)
    assembly = Assembly(store, big)
    assert assembly.missing() == (ChunkRun(0, 2**21),)
    assert list(store.root.iterdir()) == []
    assembly.accept(2, b"x" * 1024)
    assert assembly.missing() == (ChunkRun(0, 2), ChunkRun(3, 2**21 - 3))
    assert sum(path.stat().st_blocks for path in store.root.iterdir()) * 512 < 2**24


def test_assembly_of_a_blob_that_is_here_needs_nothing(store):
    store.add(DATA)
    assembly = Assembly(store, BLOB)
    assert assembly.is_complete
    assert assembly.missing() == ()


def test_assembly_stopped_before_the_digest_was_checked_asks_for_one_chunk(store):
    whole, partial, have = store.files(BLOB.digest)
    partial.write_bytes(DATA)
    have.write_bytes(b"\x01" * 5)
    assembly = Assembly(store, BLOB)
    assert assembly.missing() == (ChunkRun(4, 1),)
    assert assembly.accept(4, part(DATA, BLOB, 4))
    assert whole.read_bytes() == DATA


def test_assembly_whose_claimed_chunk_was_lost_in_a_power_cut_starts_over(store):
    assembly = Assembly(store, BLOB)
    for index in range(4):
        assembly.accept(index, part(DATA, BLOB, index))
    store.files(BLOB.digest)[1].write_bytes(bytes(len(DATA)))
    assembly = Assembly(store, BLOB)
    with pytest.raises(BlobInvalid):
        assembly.accept(4, part(DATA, BLOB, 4))
    assert assembly.missing() == (ChunkRun(0, 5),)


@pytest.mark.parametrize("have", [b"", b"\x01" * 4, b"\x01" * 6, b"\x02" * 5])
def test_assembly_with_a_damaged_record_starts_over(store, have):
    store.files(BLOB.digest)[1].write_bytes(DATA)
    store.files(BLOB.digest)[2].write_bytes(have)
    assert Assembly(store, BLOB).missing() == (ChunkRun(0, 5),)


def test_assembly_whose_files_vanished_starts_over(store):
    assembly = Assembly(store, BLOB)
    assembly.accept(0, part(DATA, BLOB, 0))
    store.discard(BLOB.digest)
    assembly.accept(1, part(DATA, BLOB, 1))
    assert assembly.missing() == (ChunkRun(0, 1), ChunkRun(2, 3))


def test_two_assemblies_of_the_same_content_both_end(store):
    first, second = Assembly(store, BLOB), Assembly(store, BLOB)
    second.accept(0, part(DATA, BLOB, 0))
    assert [first.accept(index, part(DATA, BLOB, index)) for index in range(5)] == [False] * 4 + [True]
    assert second.accept(1, part(DATA, BLOB, 1))
    assert second.missing() == ()
    assert not second.accept(2, part(DATA, BLOB, 2))


def test_store_adds_once_and_describes(store):
    assert store.add(DATA, chunk_bytes=1024) == BLOB == store.add(memoryview(DATA), chunk_bytes=1024)
    assert BLOB.digest == hashlib.sha256(DATA).hexdigest()
    assert BLOB.digest in store


@pytest.mark.parametrize(("data", "chunk_bytes"), [(b"", 1024), (b"x", 1023), (b"x", 2**20 + 1)])
def test_describe_refuses_what_cannot_be_sent(data, chunk_bytes):
    with pytest.raises(BlobInvalid, match="cannot be sent"):
        describe(data, chunk_bytes=chunk_bytes)


def test_store_without_the_blob_raises(store):
    with pytest.raises(BlobInvalid, match="is not in"):
        store.read(BLOB.digest)
    with pytest.raises(BlobInvalid, match="is not in"):
        store.run(BLOB, ChunkRun(0, 1))
    store.add(DATA)
    with pytest.raises(BlobInvalid, match="no chunk 5"):
        store.run(BLOB, ChunkRun(4, 2))


def test_store_with_a_file_shorter_than_described_raises(store):
    store.add(DATA)
    longer = Blob(digest=BLOB.digest, size_bytes=len(DATA) + 1, chunk_bytes=1024)
    with pytest.raises(BlobInvalid, match="not have the 4353 bytes of its description"):
        store.run(longer, ChunkRun(4, 1))


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "a" * 63, "a" * 64 + "\n", "A" * 64])
def test_store_refuses_a_digest_that_could_be_a_path(store, digest):
    with pytest.raises(BlobInvalid, match="is not a SHA-256 digest"):
        store.path(digest)


def test_store_lists_its_own_files_alone(store):
    store.add(DATA)
    (store.root / "README").write_text("not ours")
    (store.root / ".temporary").write_text("not ours")
    assert list(store.digests()) == [BLOB.digest]
