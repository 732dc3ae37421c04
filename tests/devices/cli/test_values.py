import argparse

import pytest

from devices.cli.values import by_task, groups, names, numbers, parse_size, size, whole_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [("220MiB", 220 * 2**20), ("512 KiB", 512 * 2**10), ("1GiB", 2**30), ("230686720", 230686720)],
)
def test_size_is_read(text, expected):
    assert parse_size(text) == expected
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0MiB", "220MB", "-1", "1.5GiB", "9" * 16, "\uff11MiB", "5MiB\n"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size: write 220MiB"):
        parse_size(text)
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size: write 220MiB"):
        size(text)


def test_lists_are_read():
    assert names("a, b,c") == ("a", "b", "c")
    assert numbers("0,1, 2") == (0, 1, 2)
    assert groups("a,b;c") == (("a", "b"), ("c",))
    assert by_task("a=2, b=0.5") == {"a": 2.0, "b": 0.5}


@pytest.mark.parametrize(("read", "text"), [(numbers, "0,x"), (by_task, "a"), (by_task, "a=much")])
def test_lists_that_are_none_are_refused(read, text):
    with pytest.raises(ValueError):
        read(text)


def test_whole_number_is_within_its_bounds():
    assert (whole_number(1)("12"), whole_number(1, 3)("3"), whole_number(-2)("-2")) == (12, 3, -2)


@pytest.mark.parametrize(
    ("bounds", "text", "why"),
    [
        ((1,), "0", "'0' is not a whole number of 1 or more"),
        ((1, 3), "4", "'4' is not a whole number of 1 to 3"),
        ((1, 3), "two", "'two' is not a whole number of 1 to 3"),
        ((0,), "1.5", "'1.5' is not a whole number"),
    ],
)
def test_whole_number_refuses(bounds, text, why):
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        whole_number(*bounds)(text)
