import errno
import hashlib
import os

import pytest

from edge_runtime.wire.files import READ_BYTES, atomic_file, check_writable, digest_file, sync_file, write_atomic


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


@pytest.mark.parametrize("filename", [None, "sibling"])
def test_error_while_writing_names_the_file(tmp_path, filename):
    path = tmp_path / "weights"
    write_atomic(path, b"old")
    where = None if filename is None else str(tmp_path / filename)
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "a" / "copy"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")


def test_check_writable_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "folder" / "weights"
    check_writable(path, 5000)
    assert list(tmp_path.iterdir()) == []
    write_atomic(path, b"old")
    check_writable(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_check_writable_names_the_file_that_does_not_fit(tmp_path):
    with pytest.raises(OSError, match="No space left|too large") as caught:
        check_writable(tmp_path / "weights", 2**62)
    assert caught.value.filename == str(tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


def test_check_writable_of_a_folder_and_below_a_file(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        check_writable(tmp_path)
    assert caught.value.filename == str(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "weights", tmp_path / "file" / "folder" / "weights"):
        with pytest.raises(NotADirectoryError) as caught:
            check_writable(path)
        assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="/proc/weights"):
        check_writable(tmp_path.joinpath("/proc/weights"))
