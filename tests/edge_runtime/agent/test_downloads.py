import os

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.downloads import PlanDownloads, check_manifest, check_plan, graph_blobs, surplus
from edge_runtime.agent.state import State
from edge_runtime.agent.work import WorkRefused
from edge_runtime.wire import signing
from edge_runtime.wire.blob import Blob, ChunkRun, describe
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.manifest import MAX_MANIFEST_BYTES
from edge_runtime.wire.personal import Held, OwnParts, sent_table
from edge_runtime.wire.tensors import pack

CAP = 10**7


@pytest.fixture
def state(tmp_path):
    state = State(tmp_path / "state")
    yield state
    state.close()


@pytest.fixture
def bundle(make_bundle):
    return make_bundle()


@pytest.fixture
def downloads(state, public_key):
    return PlanDownloads(state, server_key=public_key, max_bytes=CAP)


def resized(blob, size_bytes):
    return msgspec.structs.replace(blob, size_bytes=size_bytes)


def chunks(blob, data):
    return [(i, data[i * blob.chunk_bytes : (i + 1) * blob.chunk_bytes]) for i in range(blob.chunks)]


def fetch(downloads, bundle, plan):
    """Bring everything that the plan needs; the digests that were brought."""
    brought = []
    while missing := downloads.missing(plan):
        for each in missing:
            brought.append(each.blob.digest)
            outcomes = [
                downloads.accept(each.blob.digest, i, data)
                for i, data in chunks(each.blob, bundle.blobs[each.blob.digest])
                if any(run.first <= i < run.end for run in each.runs)
            ]
            assert outcomes == ["kept"] * (len(outcomes) - 1) + ["complete"]
    return brought


# The pure parts


def test_check_plan_takes_what_is_within_the_cap(bundle):
    plan = bundle.plan(0)
    check_plan(plan, plan.bundle.size_bytes + plan.weights.size_bytes)


def test_check_plan_refuses_a_manifest_over_its_cap(bundle):
    plan = bundle.plan(0, bundle=resized(bundle.bundle, MAX_MANIFEST_BYTES + 1))
    with pytest.raises(WorkRefused, match="manifest has 8388609 bytes") as caught:
        check_plan(plan, 2**31)
    assert caught.value.reason == "bundle"


def test_check_plan_refuses_weights_over_the_cap(bundle):
    plan = bundle.plan(0)
    with pytest.raises(WorkRefused, match="max_download_bytes"):
        check_plan(plan, plan.bundle.size_bytes + plan.weights.size_bytes - 1)


def test_check_manifest_returns_the_manifest(bundle, public_key):
    assert check_manifest(bundle.encoded, bundle.plan(0), public_key, CAP) == bundle.manifest


def test_check_manifest_refuses_a_foreign_signature(make_bundle, public_key):
    foreign = make_bundle(key=Ed25519PrivateKey.generate())
    with pytest.raises(WorkRefused, match="not signed by the server key"):
        check_manifest(foreign.encoded, foreign.plan(0), public_key, CAP)


def test_check_manifest_refuses_an_altered_manifest(bundle, public_key):
    with pytest.raises(WorkRefused, match="not signed"):
        check_manifest(bundle.encoded.replace(b'"test"', b'"tesT"'), bundle.plan(0), public_key, CAP)


def test_check_manifest_refuses_signed_rubbish(bundle, public_key):
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    plan = bundle.plan(0, signature=signing.sign(key, b"{}"))
    with pytest.raises(WorkRefused, match="not understood"):
        check_manifest(b"{}", plan, public_key, CAP)


def test_check_manifest_refuses_other_tasks_than_the_plan(bundle, public_key):
    with pytest.raises(WorkRefused, match="manifest is for a, b, the plan for a"):
        check_manifest(bundle.encoded, bundle.plan(0, tasks=("a",)), public_key, CAP)


@pytest.mark.parametrize("change", [-4000, 40000])
def test_check_manifest_refuses_weights_that_cannot_fit_its_tensors(bundle, public_key, change):
    weights = bundle.weights(0.0)
    plan = bundle.plan(0, weights=resized(weights, max(1, weights.size_bytes + change)))
    with pytest.raises(WorkRefused, match="the weights have"):
        check_manifest(bundle.encoded, plan, public_key, CAP)


def test_check_manifest_refuses_graphs_over_the_cap(bundle, public_key):
    with pytest.raises(WorkRefused, match="the plan needs"):
        check_manifest(bundle.encoded, bundle.plan(0), public_key, 10_000)


def test_graph_blobs_name_each_file_once(bundle):
    file = next(iter(bundle.manifest.graphs.values()))
    shared = msgspec.structs.replace(bundle.manifest, graphs=dict.fromkeys(bundle.manifest.graphs, file))
    assert graph_blobs(shared, 1024) == (Blob(digest=file.digest, size_bytes=file.size_bytes, chunk_bytes=1024),)


def test_surplus_drops_the_least_recently_used_first():
    held = [(3.0, 10, "c"), (1.0, 10, "a"), (2.0, 10, "b")]
    assert surplus(held, (), 30) == []
    assert surplus(held, (), 29) == ["a"]
    assert surplus(held, ("a",), 15) == ["b", "c"]
    assert surplus(held, ("a", "b", "c"), 0) == []


@given(
    sizes=st.lists(st.integers(1, 100)),
    kept=st.sets(st.integers(0, 20)),
    cap=st.integers(0, 1000),
)
def test_surplus_leaves_at_most_the_cap_or_what_is_kept(sizes, kept, cap):
    held = [(float(i), size, str(i)) for i, size in enumerate(sizes)]
    keep = {str(i) for i in kept}
    dropped = surplus(held, keep, cap)
    assert not keep & set(dropped)
    left = [(size, digest) for _, size, digest in held if digest not in dropped]
    assert sum(size for size, _ in left) <= cap or {digest for _, digest in left} <= keep


# On disk


def test_missing_is_the_manifest_first_then_the_rest(downloads, bundle):
    plan = bundle.plan(0)
    brought = fetch(downloads, bundle, plan)
    graphs = {file.digest for file in bundle.manifest.graphs.values()}
    assert brought[0] == plan.bundle.digest
    assert set(brought[1:]) == graphs | {plan.weights.digest}
    manifest, vector = downloads.load(plan)
    assert manifest == bundle.manifest
    np.testing.assert_array_equal(vector, np.zeros(bundle.table.size, np.float32))


def test_missing_is_nothing_but_weights_in_the_next_round(downloads, bundle):
    fetch(downloads, bundle, bundle.plan(0))
    plan = bundle.plan(1)
    assert fetch(downloads, bundle, plan) == [plan.weights.digest]


def test_missing_drops_the_weights_of_the_round_before(downloads, state, bundle):
    first, second = bundle.plan(0), bundle.plan(1)
    fetch(downloads, bundle, first)
    fetch(downloads, bundle, second)
    assert list(state.weights.digests()) == [second.weights.digest]
    assert {file.digest for file in bundle.manifest.graphs.values()} <= set(state.blobs.digests())


def test_missing_goes_on_with_a_partial_blob_after_a_restart(state, bundle, public_key):
    plan = bundle.plan(0)
    first = PlanDownloads(state, server_key=public_key, max_bytes=CAP)
    (missing,) = first.missing(plan)
    assert first.accept(plan.bundle.digest, 1, chunks(plan.bundle, bundle.encoded)[1][1]) == "kept"
    second = PlanDownloads(state, server_key=public_key, max_bytes=CAP)
    (again,) = second.missing(plan)
    assert missing.runs == (ChunkRun(0, plan.bundle.chunks),)
    assert again.runs == (ChunkRun(0, 1), ChunkRun(2, plan.bundle.chunks - 2))


def test_missing_fetches_a_file_again_that_has_changed_on_disk(state, bundle, public_key):
    plan = bundle.plan(0)
    fetch(PlanDownloads(state, server_key=public_key, max_bytes=CAP), bundle, plan)
    graph = bundle.manifest.graphs["encoder.0.forward"]
    path = state.blobs.path(graph.digest)
    for spoiled in (bytes(graph.size_bytes), b"short"):
        path.write_bytes(spoiled)
        assert fetch(PlanDownloads(state, server_key=public_key, max_bytes=CAP), bundle, plan) == [graph.digest]


def test_missing_drops_partial_blobs_that_the_plan_does_not_need(downloads, state, bundle, make_bundle):
    other = make_bundle(tasks=("a",))
    downloads.missing(other.plan(0))
    downloads.accept(other.bundle.digest, 0, other.encoded[:1024])
    assert other.bundle.digest in state.blobs.digests()
    downloads.missing(bundle.plan(1))
    assert other.bundle.digest not in state.blobs.digests()


def test_missing_drops_old_graphs_over_the_cap(state, bundle, make_bundle, public_key):
    old = make_bundle(tasks=("c",), graph_bytes=3500)
    fetch(PlanDownloads(state, server_key=public_key, max_bytes=CAP), old, old.plan(0))
    for digest in state.blobs.digests():
        os.utime(state.blobs.path(digest), (1.0, 1.0))
    small = PlanDownloads(state, server_key=public_key, max_bytes=45_000)
    fetch(small, bundle, bundle.plan(1))
    held = set(state.blobs.digests())
    assert {file.digest for file in bundle.manifest.graphs.values()} <= held
    assert not {file.digest for file in old.manifest.graphs.values()} <= held
    assert sum(path.stat().st_size for path in state.blobs.root.iterdir()) <= 45_000


def test_missing_drops_a_manifest_that_is_not_the_servers(downloads, state, make_bundle):
    foreign = make_bundle(key=Ed25519PrivateKey.generate())
    with pytest.raises(WorkRefused):
        fetch(downloads, foreign, foreign.plan(0))
    assert list(state.blobs.digests()) == []


def test_state_folder_that_has_vanished_is_a_refusal(downloads, state, bundle):
    plan = bundle.plan(0)
    downloads.missing(plan)
    state.blobs.root.rmdir()
    with pytest.raises(WorkRefused, match="cannot be written to the state folder") as caught:
        downloads.accept(plan.bundle.digest, 0, bundle.encoded[:1024])
    assert caught.value.reason == "error"
    with pytest.raises(WorkRefused, match="state folder cannot be used"):
        downloads.missing(plan)


def test_accept_takes_only_what_is_on_its_way(downloads, bundle):
    plan = bundle.plan(0)
    assert downloads.accept(plan.bundle.digest, 0, b"") == "unrequested"
    downloads.missing(plan)
    downloads.stop(plan.bundle.digest)
    assert downloads.accept(plan.bundle.digest, 0, b"") == "unrequested"
    downloads.stop(plan.bundle.digest)


@pytest.mark.parametrize(("index", "length"), [(0, 1023), (0, 1025), (10**6, 1024)])
def test_accept_refuses_a_chunk_that_cannot_be(downloads, bundle, index, length):
    downloads.missing(bundle.plan(0))
    with pytest.raises(BlobInvalid):
        downloads.accept(bundle.bundle.digest, index, bytes(length))


def test_accept_reports_a_complete_blob_with_another_digest(downloads, state, bundle):
    plan = bundle.plan(0)
    (missing,) = downloads.missing(plan)
    outcomes = [
        downloads.accept(plan.bundle.digest, i, bytes(plan.bundle.length(i))) for i in range(missing.blob.chunks)
    ]
    assert outcomes[-1] == "corrupt"
    assert plan.bundle.digest not in state.blobs
    assert downloads.accept(plan.bundle.digest, 0, bundle.encoded[:1024]) == "kept"


def test_load_refuses_weights_that_are_not_finite(downloads, bundle):
    vector = np.zeros(bundle.table.size, np.float32)
    vector[-1] = np.inf
    data = pack(bundle.table, vector)
    blob = describe(data, chunk_bytes=1024)
    bundle.blobs[blob.digest] = data
    plan = bundle.plan(0, weights=blob)
    fetch(downloads, bundle, plan)
    with pytest.raises(WorkRefused, match="weights of round 0.*not finite") as caught:
        downloads.load(plan)
    assert caught.value.reason == "bundle"


def test_load_refuses_what_is_not_here(downloads, bundle):
    with pytest.raises(WorkRefused, match="cannot be read") as caught:
        downloads.load(bundle.plan(0))
    assert caught.value.reason == "error"


def packed(bundle, table, value):
    """Describe a file of these tensors, filled with a value, which the bundle's server has."""
    data = pack(table, np.full(table.size, value, np.float32))
    blob = describe(data, chunk_bytes=1024)
    bundle.blobs[blob.digest] = data
    return blob


def heads_of_its_own(bundle, number, start=5.0):
    """A plan whose weights are without the heads, and the file of the heads' first values."""
    personal = OwnParts(
        parts=("head.a", "head.b"), start=packed(bundle, bundle.table.select(["head.a", "head.b"]), start)
    )
    sent = sent_table(bundle.table, personal)
    return bundle.plan(number, personal=personal, weights=packed(bundle, sent, float(number)))


def test_parts_that_are_never_sent_are_downloaded_once_with_their_first_values(downloads, bundle):
    first, second = heads_of_its_own(bundle, 0), heads_of_its_own(bundle, 1)
    assert first.personal.start.digest in fetch(downloads, bundle, first)
    assert fetch(downloads, bundle, second) == [second.weights.digest]
    _, weights = downloads.load(second)
    for name, view in bundle.table.views(weights).items():
        np.testing.assert_array_equal(view, 5.0 if name.startswith("head.") else 1.0)


def test_load_refuses_first_values_of_another_model(downloads, bundle):
    plan = heads_of_its_own(bundle, 0)
    other = packed(bundle, bundle.table.select(["head.a"]), 0.0)
    plan = msgspec.structs.replace(plan, personal=msgspec.structs.replace(plan.personal, start=other))
    fetch(downloads, bundle, plan)
    with pytest.raises(WorkRefused, match="weights of round 0") as caught:
        downloads.load(plan)
    assert caught.value.reason == "bundle"


def test_first_values_count_in_what_a_device_downloads_at_most(bundle):
    plan = heads_of_its_own(bundle, 0)
    sizes = [blob.size_bytes for blob in plan.files]
    check_plan(plan, sum(sizes))
    with pytest.raises(WorkRefused, match="max_download_bytes"):
        check_plan(plan, sum(sizes) - 1)


def test_what_is_held_is_held_to_the_centres_file_of_this_plan(downloads, state, bundle):
    table = bundle.table
    for number in (0, 1):
        centre = packed(bundle, table.select(["head.a"]), 7.0 + number)
        plan = bundle.plan(number, held=Held(parts=("head.a",), centre=centre, strength=1.0))
        fetch(downloads, bundle, plan)
        _, weights = downloads.load(plan)
        for name, view in table.views(downloads.centre(plan, table, weights)).items():
            expected = 7.0 + number if name.startswith("head.a.") else table.views(weights)[name]
            np.testing.assert_array_equal(view, expected)
    assert set(state.weights.digests()) == {plan.weights.digest, centre.digest}
    assert downloads.centre(bundle.plan(0), table, weights) is None


def test_a_centre_of_a_part_that_the_model_lacks_or_of_other_tensors_is_refused(downloads, bundle):
    table = bundle.table
    centre = packed(bundle, table.select(["head.b"]), 0.0)
    lacking = bundle.plan(0, held=Held(parts=("stem",), centre=centre, strength=1.0))
    with pytest.raises(WorkRefused, match="no part 'stem'"):
        fetch(downloads, bundle, lacking)
    plan = bundle.plan(0, held=Held(parts=("head.a", "encoder"), centre=centre, strength=1.0))
    fetch(downloads, bundle, plan)
    with pytest.raises(WorkRefused, match="centre of round 0") as caught:
        downloads.centre(plan, table, np.zeros(table.size, np.float32))
    assert caught.value.reason == "bundle"


class Declining:
    """Limits that no manifest is within."""

    def manifest_fault(self, plan, manifest):
        return f"not with the stem of {manifest.name}"


def test_plan_is_declined_for_what_its_manifest_says_before_anything_else_is_downloaded(state, bundle, public_key):
    downloads = PlanDownloads(state, server_key=public_key, max_bytes=CAP, limits=Declining())
    plan = bundle.plan(0)
    (manifest,) = downloads.missing(plan)
    for i, data in chunks(manifest.blob, bundle.blobs[manifest.blob.digest]):
        downloads.accept(manifest.blob.digest, i, data)
    with pytest.raises(WorkRefused, match="not with the stem of") as caught:
        downloads.missing(plan)
    assert caught.value.reason == "limits"
