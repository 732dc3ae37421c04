import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.cli.text import PRINTABLE, printable

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[1;31mX\x1b[0m\nmallory has joined: 99 online\n"


@given(st.text())
def test_printable_text_of_anything_is_one_line_that_a_message_may_have(text):
    shown = printable(text, 50)
    assert len(shown) <= 50
    assert shown.isprintable()
    assert re.match(PRINTABLE, shown)


def test_printable_text_stays_as_it_is():
    for text in ("", "81 °C: zu heiß, 温度", "a b"):
        assert printable(text, 100) == text
        assert re.match(PRINTABLE, text)


@pytest.mark.parametrize(
    "odd", ["\x1b[2J", "a\nb", "\x07", "\u202egnp.exe", "\u2028", "\x9b31m", "\x7f", "\ud800", "\u200b"]
)
def test_text_that_is_not_printable_is_in_no_message(odd):
    assert not re.match(PRINTABLE, odd)


def test_printable_text_of_escape_codes_forges_no_line():
    assert printable(ESCAPES, 500) == "?]0;owned??[2J?[1;31mX?[0m mallory has joined: 99 online "
