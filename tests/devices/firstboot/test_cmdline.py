import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.firstboot.cmdline import CommandLineInvalid, edit

LINE = b"console=serial0,115200 console=tty1 root=PARTUUID=d89b055c-02 rootwait quiet\n"
WORDS = st.lists(st.from_regex(rb"[a-z][a-z0-9_.=/,-]{0,20}", fullmatch=True), min_size=1, max_size=10)


def test_edit_for_cloud_init():
    assert edit(LINE, instance="mas-1", country="DE") == (
        b"console=serial0,115200 console=tty1 root=PARTUUID=d89b055c-02 rootwait quiet "
        b"cfg80211.ieee80211_regdom=DE cgroup_enable=memory ds=nocloud;i=mas-1\n"
    )


def test_edit_takes_away_what_was_set_up_before():
    """Raspberry Pi Imager's words, and our own for the other kind of first boot."""
    old = edit(LINE, firstrun=True).replace(b"\n", b" ds=nocloud;i=rpi-imager-17 cfg80211.ieee80211_regdom=US\n")
    assert edit(old, instance="new", country="GB") == edit(LINE, instance="new", country="GB")
    assert edit(edit(LINE, instance="new"), firstrun=True) == edit(LINE, firstrun=True)


def test_edit_without_wifi_leaves_the_country():
    assert b"regdom=US" in edit(b"a cfg80211.ieee80211_regdom=US", instance="x")


@pytest.mark.slow
@given(words=WORDS)
def test_edit_twice_is_edit_once_and_keeps_the_words(words):
    once = edit(b" ".join(words), instance="i", country="DE")
    assert edit(once, instance="i", country="DE") == once
    assert once.count(b"\n") == 1


@pytest.mark.parametrize("text", [b"", b"\n", b"a\nb", "ä".encode(), b"x" * 5000])
def test_edit_what_is_no_command_line_is_refused(text):
    with pytest.raises(CommandLineInvalid, match="not one line"):
        edit(text)
