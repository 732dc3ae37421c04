import argparse
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from devices.cli.document import to_json, to_markdown, to_schema, to_toml
from devices.cli.settings import (
    COMMAND_LINE,
    DEFAULT,
    MAX_FILE_BYTES,
    ConfigInvalid,
    add_flags,
    beside,
    build,
    has,
    nearest,
    of_flags,
    read_toml,
    settings_of,
    tables_of,
)


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    size: Annotated[float, Meta(gt=0, lt=9, description="its radius")] = 1.0


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    fuel: Annotated[Literal["wood", "coal"], Meta(description="what it burns", extra={"common": True})] = "wood"
    wait_s: Annotated[float, Meta(ge=0, description="how long it warms up")] = 2.0
    rods: Annotated[int, Meta(le=4, description="rods")] = 2
    wheel: Annotated[Wheel, Meta(description="its wheel", extra={"prefix": "wheel-"})] = Wheel()
    boilers: Annotated[int, Meta(ge=1, le=200_000, description="boilers", extra={"flag": "--kettles"})] = 100_000


class Train(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(pattern="^[a-z]+$", description="its name")]
    secret: Annotated[str, Meta(max_length=3, description="a word", extra={"secret": True})] = ""
    track: Annotated[Path | None, Meta(description="a file")] = None
    late: Annotated[bool, Meta(description="100 % late")] = False
    stops: Annotated[tuple[str, ...], Meta(description="stops | halts")] = ()
    groups: Annotated[tuple[Annotated[tuple[str, ...], Meta(min_length=1)], ...], Meta(description="groups")] = ()
    weights: Annotated[dict[str, Annotated[float, Meta(ge=0)]], Meta(description="weights")] = {}
    plain: float = 0.5
    engine: Annotated[Engine, Meta(description="what pulls it")] = Engine(rods=3)
    spare: Engine = Engine()


SETTINGS = settings_of(Train)
KEYS = {each.key: each for each in SETTINGS}


def parser(**options):
    made = argparse.ArgumentParser(prog="train")
    add_flags(made, SETTINGS[:-5], tables_of(Train), **options)
    return made


def flags(*words):
    return of_flags(parser().parse_args(words), SETTINGS)


def test_settings_are_the_fields_of_a_struct_and_of_its_tables():
    assert list(KEYS)[:3] == ["name", "secret", "track"]
    assert KEYS["engine.wheel.size"].flag == "--wheel-size"
    assert KEYS["engine.boilers"].flag == "--kettles"
    assert (KEYS["engine.wait_s"].unit, KEYS["name"].unit) == ("s", "")
    assert KEYS["engine.rods"].default == 3  # the table's default, not the struct's
    assert (KEYS["name"].is_required, KEYS["late"].is_required) == (True, False)
    assert tables_of(Train) == {
        "engine": "what pulls it",
        "engine.wheel": "its wheel",
        "spare": "",
        "spare.wheel": "its wheel",
    }


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("name", "text of the form ^[a-z]+$"),
        ("secret", "text"),
        ("track", "a path"),
        ("late", "true or false"),
        ("stops", "names: a,b,c"),
        ("groups", "groups of tasks: a,b;c"),
        ("weights", "a number for each task: a=2,b=0.5"),
        ("plain", "a number"),
        ("engine.fuel", "one of coal, wood"),
        ("engine.wait_s", "a number, 0 or more"),
        ("engine.rods", "a whole number, at most 4"),
        ("engine.wheel.size", "a number, above 0 and below 9"),
        ("engine.boilers", "a whole number, 1 to 200,000"),
    ],
)
def test_setting_says_what_it_takes(key, takes):
    assert KEYS[key].takes == takes


def test_help_has_sentence_unit_bounds_and_default():
    text = " ".join(parser().format_help().split())
    assert "--wait-s WAIT how long it warms up [s; 0 or more; default 2]" in text
    assert "--kettles BOILERS boilers [1 to 200,000; default 100,000]" in text
    assert "--late, --no-late 100 % late [default false]" in text
    assert "[engine] what pulls it:" in text
    assert "[engine.wheel] its wheel:" in text


def test_help_shows_what_is_asked_for_and_takes_the_rest():
    short = parser(is_shown=lambda each: each.is_common)
    assert "--fuel" in short.format_help()
    assert "--kettles" not in short.format_help()
    assert of_flags(short.parse_args(["--kettles", "3"]), SETTINGS) == {"engine": {"boilers": 3}}


def test_flags_are_a_tree():
    words = ["--name", "ice", "--no-late", "--stops", "a, b", "--groups", "a,b;c", "--weights", "a=2,b=0.5"]
    found = flags(*words, "--track", "x/y", "--fuel", "coal", "--wheel-size", "3")
    assert found == {
        "name": "ice",
        "late": False,
        "stops": ("a", "b"),
        "groups": (("a", "b"), ("c",)),
        "weights": {"a": 2.0, "b": 0.5},
        "track": Path("x/y"),
        "engine": {"fuel": "coal", "wheel": {"size": 3.0}},
    }
    assert flags() == {}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--kettles", "0"], "argument --kettles: '0' is not a whole number, 1 to 200,000"),
        (["--wheel-size", "big"], "argument --wheel-size: 'big' is not a number, above 0 and below 9"),
        (["--weights", "a"], "argument --weights: 'a' is not a number for each task"),
        (["--weights", "a=-1"], "argument --weights: 'a=-1' is not a number for each task"),
        (["--track", ""], "argument --track: '' is not a path"),
        (["--fuel", "oil"], "argument --fuel: invalid choice: 'oil'"),
    ],
)
def test_flags_that_cannot_be(capsys, words, why):
    with pytest.raises(SystemExit) as ended:
        flags(*words)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_build_lets_later_layers_go_over_earlier_ones_and_says_who_won():
    found = build(
        Train, [("a", {"name": "ice", "engine": {"rods": 1, "fuel": "coal"}}), ("b", {"engine": {"rods": 2}})]
    )
    assert (found.value.engine.rods, found.value.engine.fuel, found.value.engine.boilers) == (2, "coal", 100_000)
    keys = ("name", "engine.rods", "engine.fuel", "engine.boilers")
    assert [found.sources[key] for key in keys] == ["a", "b", "a", DEFAULT]


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({}, "f.toml: name is missing: its name"),
        ({"nmae": "ice"}, "f.toml: nmae: there is no such key; did you mean name?"),
        ({"name": "ice", "fuel": "coal"}, "f.toml: fuel: there is no such key; did you mean"),
        ({"name": "ice", "engine": {"xyz": 1}}, "f.toml: engine.xyz: there is no such key"),
        ({"name": "ice", "engine": 3}, "f.toml: engine: a table of keys is needed"),
        ({"name": "ICE"}, "f.toml: name: 'ICE' is not text of the form ^[a-z]+$"),
        ({"name": "ice", "secret": "hush"}, "f.toml: secret: its value is not text"),
        ({"name": "ice", "engine": {"boilers": 0}}, "f.toml: engine.boilers: 0 is not a whole number, 1 to 200,000"),
        (
            {"name": "ice", "weights": {"a": -1}},
            "f.toml: weights: {'a': -1} is not a number for each task: a=2,b=0.5 (",
        ),
        ({"name": "ice", "track": 3}, "f.toml: track: 3 is not a path"),
        ({"name": "ice", "track": "a\0b"}, "is not a path"),
    ],
)
def test_build_refuses_with_source_and_key(tree, why):
    with pytest.raises(ConfigInvalid) as raised:
        build(Train, [("f.toml", tree)])
    assert str(raised.value).startswith(why) or why in str(raised.value)
    assert "hush" not in str(raised.value)


def test_build_takes_what_is_a_path_already():
    assert build(Train, [(COMMAND_LINE, {"name": "ice", "track": Path("x")})]).value.track == Path("x")


def test_build_reports_what_the_struct_itself_refuses():
    class Pair(msgspec.Struct):
        low: int = 0
        high: int = 1

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(ConfigInvalid, match="a: low is above high"):
        build(Pair, [("a", {"low": 2})])


def test_nearest_is_a_key_that_is_like_it_or_none():
    assert nearest("engine.rodz", KEYS) == "; did you mean engine.rods?"
    assert nearest("qqqq", KEYS) == ""


def test_read_toml(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text('name = "ice"\n')
    assert read_toml(path) == {"name": "ice"}
    for content in (b"name = ", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ConfigInvalid, match="f.toml is not TOML"):
            read_toml(path)
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigInvalid, match="is over 65536 bytes"):
        read_toml(path)
    with pytest.raises(ConfigInvalid, match="is not a file"):
        read_toml(tmp_path)
    with pytest.raises(ConfigInvalid, match=r"none.toml cannot be read: No such file"):
        read_toml(tmp_path / "none.toml")


def test_paths_of_a_file_are_relative_to_it(tmp_path):
    tree = {"name": "ice", "track": "../x", "engine": {"rods": 1}}
    assert beside(tmp_path / "f" / "a.toml", tree, Train)["track"] == str(tmp_path.resolve() / "x")
    assert tree["track"] == "../x"
    assert beside(tmp_path / "a.toml", {"track": 3}, Train) == {"track": 3}
    assert beside(tmp_path / "a.toml", {"track": ""}, Train) == {"track": ""}


def test_has_a_key_or_not():
    assert has({"engine": {"rods": 1}}, "engine.rods")
    assert has({"engine": {"rods": 1}}, "engine")
    assert not has({"engine": 3}, "engine.rods")


def test_settings_as_a_file_are_read_again(tmp_path):
    tree = {"name": "ice", "weights": {"a": 2.0}, "stops": ["a", "b"], "engine": {"wheel": {"size": 3.0}}}
    found = build(Train, [("f.toml", tree)])
    path = tmp_path / "f.toml"
    path.write_text(to_toml(found))
    assert "\n[engine.wheel]\nsize = 3.0  # f.toml\n" in path.read_text()
    assert "late = false  # default" in path.read_text()
    assert "track" not in path.read_text()
    assert build(Train, [("again", read_toml(path))]).value == found.value


def test_settings_as_json_and_as_a_schema():
    found = to_json(build(Train, [("f.toml", {"name": "ice", "track": "x"})]))
    assert found["track"] == {"value": "x", "source": "f.toml"}
    assert found["engine.rods"] == {"value": 3, "source": DEFAULT}
    schema = to_schema(Train)
    assert schema["required"] == ["name"]
    assert schema["properties"]["engine"]["properties"]["rods"]["default"] == 3
    boilers = schema["properties"]["engine"]["properties"]["boilers"]
    assert boilers == {
        "description": "boilers",
        "type": "integer",
        "minimum": 1,
        "maximum": 200_000,
        "default": 100_000,
    }


def test_settings_as_tables_of_a_document():
    text = to_markdown(Train)
    assert "| `name` | `--name` | its name |  | text of the form ^[a-z]+$ | required |" in text
    assert "| `stops` | `--stops` | stops \\| halts |" in text
    assert "### [engine]\n\nwhat pulls it\n\n| key | flag |" in text
    assert "| `wait_s` | `--wait-s` | how long it warms up | s | a number, 0 or more | `2` |" in text
    assert "| `name` | its name |" in to_markdown(Train, has_flags=False)
