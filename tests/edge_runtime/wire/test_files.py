import hashlib

import pytest

from edge_runtime.wire.files import READ_BYTES, digest_file, sync_file, write_atomic


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, memoryview(b"two"))
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_write_atomic_sets_the_mode(tmp_path):
    write_atomic(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_write_atomic_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_digest_file_reads_more_than_a_block(tmp_path):
    data = b"abc" * READ_BYTES
    (tmp_path / "file").write_bytes(data)
    sync_file(tmp_path / "file")
    assert digest_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
