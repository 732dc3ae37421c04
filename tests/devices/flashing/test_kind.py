import pytest

from devices.flashing.kind import KindUnknown, kind_of

CLOUD = frozenset({"user-data", "meta-data", "cmdline.txt", "issue.txt"})
OLD = frozenset({"cmdline.txt", "issue.txt"})


def issue(date):
    return f"Raspberry Pi reference {date}\nGenerated using pi-gen".encode()


@pytest.mark.parametrize(
    ("names", "date", "way", "system"),
    [
        (CLOUD, "2025-12-04", "cloud-init", "trixie"),
        (OLD, "2025-10-01", "cloud-init", "trixie"),  # an image that was built without the files
        (OLD, "2025-05-13", "firstrun", "bookworm"),
        (OLD, "2023-10-10", "firstrun", "bookworm"),
        (CLOUD, "2025-05-13", "cloud-init", "bookworm"),  # built with cloud-init all the same
    ],
)
def test_kind_of_raspberry_pi_os(names, date, way, system):
    kind = kind_of(names, issue(date))
    assert (kind.way, kind.released, kind.system) == (way, date, system)


def test_kind_of_another_system_with_cloud_init():
    kind = kind_of(CLOUD - {"issue.txt"}, None)
    assert (kind.way, kind.released, kind.system) == ("cloud-init", None, None)


def test_kind_of_an_image_that_is_too_old_is_refused():
    with pytest.raises(KindUnknown, match=r"Raspberry Pi OS of 2023-05-03, whose Python is older than 3\.10"):
        kind_of(OLD, issue("2023-05-03"))


@pytest.mark.parametrize("names", [frozenset(), frozenset({"cmdline.txt"}), frozenset({"user-data"})])
def test_kind_of_something_else_says_how_to_go_on(names):
    with pytest.raises(KindUnknown, match="--first-boot cloud-init or firstrun"):
        kind_of(names, b"something")


def test_kind_of_bookworm_without_cmdline_is_unknown():
    with pytest.raises(KindUnknown):
        kind_of(frozenset({"issue.txt"}), issue("2024-01-01"))


def test_kind_as_it_was_said():
    assert kind_of(frozenset(), None, "firstrun").way == "firstrun"
    assert kind_of(OLD, issue("2020-01-01"), "cloud-init").released == "2020-01-01"
