import pytest

from broker_server.rounds.device_uploads import DeviceUploads
from edge_runtime.wire.blob import Assembly, describe
from edge_runtime.wire.errors import BlobInvalid


def test_uploads_of_two_devices_are_apart(tmp_path):
    uploads = DeviceUploads(tmp_path)
    blob = uploads.of("x").add(b"mine")
    assert uploads.has("x", blob.digest)
    assert not uploads.has("y", blob.digest)
    uploads.of("y").discard(blob.digest)
    assert uploads.of("x").read(blob.digest) == b"mine"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "x\n"])
def test_uploads_of_a_name_that_no_device_has(tmp_path, name):
    uploads = DeviceUploads(tmp_path / "uploads")
    with pytest.raises(BlobInvalid, match="cannot name a device"):
        uploads.of(name)
    assert not uploads.has(name, "0" * 64)
    assert not (tmp_path / "uploads").exists()


def test_uploads_keep_what_is_named_and_with_partial_nothing_else(tmp_path):
    uploads = DeviceUploads(tmp_path / "uploads")
    uploads.keep({}, partial=True)  # nothing is here yet
    kept, other = uploads.of("x").add(b"kept"), uploads.of("x").add(b"other")
    left = describe(b"left" * 1000, chunk_bytes=1024)
    Assembly(uploads.of("x"), left).accept(0, (b"left" * 1000)[:1024])
    Assembly(uploads.of("y"), left).accept(0, (b"left" * 1000)[:1024])
    uploads.keep({"x": [kept.digest]}, partial=False)
    assert set(uploads.of("x").digests()) == {kept.digest, left.digest}
    assert not uploads.has("x", other.digest)
    assert list(uploads.of("y").digests()) == [left.digest]
    uploads.keep({"x": [kept.digest]}, partial=True)
    assert list(uploads.of("x").digests()) == [kept.digest]
    assert [folder.name for folder in uploads.root.iterdir()] == ["x"]


def test_uploads_keep_what_has_become_complete_and_was_not_heard_of(tmp_path):
    uploads = DeviceUploads(tmp_path)
    coming, other = uploads.of("x").add(b"coming"), uploads.of("x").add(b"other")
    uploads.expected["x"] = coming.digest
    uploads.keep({}, partial=False)
    assert list(uploads.of("x").digests()) == [coming.digest]
    assert not uploads.has("x", other.digest)
    uploads.keep({}, partial=True)
    assert not uploads.has("x", coming.digest)
