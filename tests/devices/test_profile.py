import msgspec
import pytest

from devices.meters import open_source
from devices.profile import Facts, ProfileInvalid, decode, load, load_all, names

MINIMAL = """
title = "a board"
family = "generic"
architecture = "aarch64"

[sources]
ours = "a choice"

[facts]
reserve_mib = { value = 300, source = "ours" }
providers = { value = ["CPUExecutionProvider"], source = "ours" }
engines = { value = ["portable"], source = "ours" }
meters = { value = ["hwmon"], source = "ours" }

[[systems]]
name = "trixie"
title = "Debian 13"
python = "3.13"
glibc = "2.41"
first_boot = "cloud-init"
source = "ours"
"""


def test_names_are_those_of_the_supported_boards():
    assert set(names()) == {
        "aarch64",
        "agx-orin",
        "agx-thor",
        "agx-xavier",
        "cm3",
        "cm4s",
        "jetson-nano",
        "orin-nano",
        "orin-nx",
        "rpi3aplus",
        "rpi3b",
        "rpi3bplus",
        "rpi4",
        "rpi5",
        "tx2",
        "x86-64",
        "xavier-nx",
        "zero2w",
    }


@pytest.mark.parametrize("name", names())
def test_load_every_profile_states_a_source_for_every_fact(name):
    profile = load(name)
    facts = [getattr(profile.facts, field) for field in Facts.__struct_fields__]
    used = {fact.source for fact in facts if fact is not None} | {system.source for system in profile.systems}
    if profile.flash is not None:
        used.add(profile.flash.source)
    assert used == set(profile.sources)
    assert profile.name == name


@pytest.mark.parametrize("name", names())
def test_load_every_profile_names_meters_that_there_are(name, tmp_path):
    for source in load(name).facts.meters.value:
        open_source(source, root=tmp_path)  # raises ValueError for a name that is none


@pytest.mark.parametrize("name", names())
def test_load_every_profile_is_consistent(name):
    profile = load(name)
    memory = profile.facts.memory_mib
    assert memory is None or profile.facts.reserve_mib.value < min(memory.value) / 2
    assert (profile.flash is not None) == (profile.family == "jetson")
    assert all(bool(system.releases) == (profile.family == "jetson") for system in profile.systems)
    assert (profile.facts.compatible is None) == (profile.family == "generic")
    assert {system.first_boot for system in profile.systems} <= (
        {"rootfs"} if profile.family == "jetson" else {"cloud-init", "firstrun"}
    )


def test_load_all_no_two_boards_claim_the_same_name():
    claimed = [p for profile in load_all() if profile.facts.compatible for p in profile.facts.compatible.value]
    assert len(claimed) == len(set(claimed))


def test_load_unknown_names_those_that_are_known():
    with pytest.raises(ProfileInvalid, match=r"no board 'rpi6': known are aarch64.*rpi5"):
        load("rpi6")


@pytest.mark.parametrize("name", ["../profile", "", "rpi5.toml", "RPI5"])
def test_load_name_that_would_be_a_path_is_unknown(name):
    with pytest.raises(ProfileInvalid, match="no board"):
        load(name)


def test_system_without_a_name_is_the_newest():
    assert load("rpi5").system().name == "trixie"
    assert load("rpi5").system("bookworm").first_boot == "firstrun"


def test_system_unknown_names_those_that_are_known():
    with pytest.raises(ProfileInvalid, match="rpi5 has no system 'buster': known are trixie, bookworm"):
        load("rpi5").system("buster")


def test_decode_minimal_leaves_what_is_not_stated_none():
    profile = decode("mine", MINIMAL.encode())
    assert (profile.name, profile.facts.cores, profile.facts.limit_c, profile.flash) == ("mine", None, None, None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"CPUExecutionProvider"], source = "ours"',
            '"CPUExecutionProvider"], source = "hearsay"',
            "providers.*hearsay",
        ),
        ("value = 300", "value = 10", "reserve_mib"),
        ('"portable"', '"magic"', "engines"),
        ('python = "3.13"', 'python = "three"', "systems"),
        ('title = "a board"', 'title = "a board"\ncolour = "red"', "colour"),
        ("[sources]", "[sources", "cannot be used"),
        ('source = "ours"\n', 'source = "rumour"\n', "system trixie.*rumour"),
    ],
)
def test_decode_wrong_file_is_refused_with_its_name(old, new, said):
    text = (
        MINIMAL.replace(old, new)
        if old != 'source = "ours"\n'
        else MINIMAL[::-1].replace(old[::-1], new[::-1], 1)[::-1]
    )
    with pytest.raises(ProfileInvalid, match=f"(?s)the profile of mine.*{said}"):
        decode("mine", text.encode())


def test_decode_flash_without_a_source_is_refused():
    text = MINIMAL + '\n[flash]\ncommand = ["flash"]\nsource = "nobody"\n'
    with pytest.raises(ProfileInvalid, match="flash names a source 'nobody'"):
        decode("mine", text.encode())


def test_decode_not_utf8_is_refused():
    with pytest.raises(ProfileInvalid, match="cannot be used"):
        decode("mine", b"\xff\xfe")


def test_profile_is_json_too():
    assert msgspec.json.decode(msgspec.json.encode(load("rpi5")))["facts"]["cores"]["value"] == [4]
