import pytest

from edge_runtime.wire.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("220MiB", 220 * 2**20), ("512 KiB", 512 * 2**10), ("1GiB", 2**30), ("230686720", 230686720)],
)
def test_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0MiB", "220MB", "-1", "1.5GiB", "9" * 16, "\uff11MiB", "5MiB\n"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size: write 220MiB"):
        parse_size(text)
