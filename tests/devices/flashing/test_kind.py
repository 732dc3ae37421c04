import pytest

from devices.flashing.kind import KindUnknown, check_wheels, way_of
from devices.flashing.system import InstalledSystem
from devices.profile import load

TRIXIE = InstalledSystem(
    title="Debian GNU/Linux 13 (trixie)",
    architecture="aarch64",
    python="3.13",
    boot_place="/boot/firmware",
    released="2025-12-04",
    has_cloud_init=True,
)


def like(**changes):
    return InstalledSystem(**{**{name: getattr(TRIXIE, name) for name in TRIXIE.__dataclass_fields__}, **changes})


@pytest.mark.parametrize(
    ("changes", "wanted", "way"),
    [
        ({}, None, "cloud-init"),
        ({}, "firstrun", "firstrun"),
        ({"has_cloud_init": False}, None, "firstrun"),  # bookworm, and the first images of trixie
        ({"released": None}, None, "cloud-init"),  # Ubuntu, Debian
        ({"released": None, "boot_place": None}, "cloud-init", "cloud-init"),
    ],
)
def test_way_is_what_the_system_has(changes, wanted, way):
    assert way_of(like(**changes), wanted) == way


@pytest.mark.parametrize(
    ("changes", "wanted", "said"),
    [
        (
            {"boot_place": "/boot"},
            None,
            "trixie. mounts its boot partition at /boot, and .* looked for at /boot/firmware",
        ),
        ({"boot_place": "/boot/efi"}, "cloud-init", "take a newer image"),
        ({"has_cloud_init": False}, "cloud-init", "is not set up by cloud-init: firstrun fits"),
        ({"released": None}, "firstrun", "is not set up by firstrun: cloud-init fits"),
        ({"released": None, "has_cloud_init": False}, None, "neither cloud-init nor .*: start it .* provision"),
    ],
)
def test_way_that_does_not_fit_is_refused_with_what_would(changes, wanted, said):
    with pytest.raises(KindUnknown, match=said):
        way_of(like(**changes), wanted)


@pytest.mark.parametrize(
    ("changes", "beside"), [({}, False), ({"python": "3.9"}, True), ({"architecture": None}, False)]
)
def test_wheels_that_fit(changes, beside):
    check_wheels(like(**changes), load("rpi5"), python="3.13", architecture="aarch64", beside=beside)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "armhf"}, "is 32-bit armhf, and the wheels are for aarch64: take the image for aarch64"),
        ({"architecture": "x86_64"}, "is x86_64, and the wheels are for aarch64"),
        ({"python": "3.11"}, "has 3.11: .* wheelhouse --board rpi5 --system bookworm`"),
        ({"python": "3.12"}, "for Python 3.13, and .* has 3.12: .* wheelhouse --board rpi5 --python 3.12"),
        ({"python": "3.9"}, "has Python 3.9, and 3.10 is needed: take a newer image"),
        ({"python": None}, "has no Python 3: take an image that has one"),
    ],
)
def test_wheels_that_do_not_fit_are_refused_with_what_would(changes, said):
    with pytest.raises(KindUnknown, match=said):
        check_wheels(like(**changes), load("rpi5"), python="3.13", architecture="aarch64", beside=False)
