import json

import pytest

from devices.__main__ import main
from devices.profile import load
from devices.wheelhouse import WheelhouseInvalid, bill, board_environment, closure, make, platform_words, read

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["edge_runtime"]
"""
BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name, info = "mas_edge-0.1.0-py3-none-any.whl", "mas_edge-0.1.0.dist-info"
    requires = 'Provides-Extra: board\\nRequires-Dist: first>=1; extra == "board"\\n'
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: mas-edge\\nVersion: 0.1.0\\n" + requires)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


@pytest.fixture
def index(tmp_path, wheel, monkeypatch):
    """A folder of wheels in place of an index; the requirements differ between Python versions."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "first", requires=['second; python_version < "3.11"', 'third; python_version >= "3.11"', "fourth>=1"])
    wheel(folder, "second", requires=["fifth; platform_machine == 'aarch64'"])
    for name in ("third", "fourth", "fifth", "pip"):
        wheel(folder, name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "project"
    (folder / "edge_runtime").mkdir(parents=True)
    (folder / "edge_runtime/__init__.py").write_text("")
    (folder / "edge_runtime/backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


@pytest.mark.process
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("board", "system", "there"),
    [("orin-nano", "jetpack6", {"second", "fifth"}), ("rpi5", "trixie", {"third"})],
)
def test_make_has_what_the_board_s_python_needs_not_this_one_s(board, system, there, tmp_path, sources):
    profile = load(board)
    made = make(profile, profile.system(system), tmp_path / "out", sources)
    names = {path.name.split("-")[0] for path in made.files}
    assert names == {"mas_edge", "pip", "first", "fourth", *there}
    assert (made.python, made.architecture) == (profile.system(system).python, profile.architecture)
    assert read(tmp_path / "out") == made
    assert not (sources / "build").exists()


@pytest.mark.process
@pytest.mark.usefixtures("index")
def test_make_again_takes_old_wheels_away(tmp_path, sources, wheel, capsys):
    out = tmp_path / "out"
    out.mkdir()
    wheel(out, "old")
    assert main(["wheelhouse", "--board", "rpi4", "--out", str(out), "--sources", str(sources)]) == 0
    assert "wheels for Python 3.13" in capsys.readouterr().out
    assert not list(out.glob("old*"))


@pytest.mark.process
@pytest.mark.usefixtures("index")
def test_make_for_another_python_beside_the_system_s(tmp_path, sources, capsys):
    words = ["wheelhouse", "--board", "xavier-nx", "--out", str(tmp_path / "out"), "--sources", str(sources)]
    assert main(words) == 3
    assert "JetPack 5, Jetson Linux R35, Ubuntu 20.04 has Python 3.8 and 3.10 is needed" in capsys.readouterr().err
    assert main([*words, "--python", "three"]) == 3
    assert "'three' is no version of Python" in capsys.readouterr().err
    assert main([*words, "--python", "3.11"]) == 0


@pytest.mark.process
def test_make_what_cannot_be_had_is_one_sentence(index, tmp_path, sources):
    next(index.glob("fourth*")).unlink()
    with pytest.raises(WheelhouseInvalid, match="pip download failed: .*fourth"):
        make(load("rpi5"), load("rpi5").system(), tmp_path / "out", sources)


@pytest.mark.process
def test_make_of_a_project_that_cannot_be_built_says_why(tmp_path, sources):
    (sources / "edge_runtime/backend.py").write_text("raise RuntimeError('broken')")
    with pytest.raises(WheelhouseInvalid, match=r"pip wheel failed: (error|ERROR)"):
        make(load("rpi5"), load("rpi5").system(), tmp_path / "out", sources)


def test_make_outside_the_project(tmp_path):
    with pytest.raises(WheelhouseInvalid, match=r"has no pyproject\.toml: run this in the project's folder"):
        make(load("rpi5"), load("rpi5").system(), tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "wheelhouse.json").unlink(), "holds no wheels for a board"),
        (lambda f: (f / "wheelhouse.json").write_text("{"), "cannot be used"),
        (lambda f: next(f.glob("numpy*")).unlink(), "numpy.*is missing or has changed"),
        (lambda f: next(f.glob("numpy*")).write_bytes(b""), "numpy.*is missing or has changed"),
    ],
)
def test_read_what_is_not_whole_is_refused(wheels, spoil, said):
    folder = wheels()
    spoil(folder)
    with pytest.raises(WheelhouseInvalid, match=said):
        read(folder)


def test_read_names_that_leave_the_folder_are_refused(wheels):
    folder = wheels()
    path = folder / "wheelhouse.json"
    manifest = json.loads(path.read_text())
    for name in ("../../x.whl", "x.txt"):
        path.write_text(json.dumps(manifest | {"files": {name: "0" * 64}}))
        with pytest.raises(WheelhouseInvalid, match="which is no wheel"):
            read(folder)
    files = {name: digest for name, digest in manifest["files"].items() if not name.startswith("pip")}
    path.write_text(json.dumps(manifest | {"files": files}))
    with pytest.raises(WheelhouseInvalid, match="has no wheel of pip"):
        read(folder)


def test_platform_words_go_up_to_the_c_library():
    words = platform_words("3.6", "2.27", "aarch64")
    assert "manylinux_2_27_aarch64" in words
    assert "manylinux_2_17_aarch64" in words
    assert "manylinux_2_28_aarch64" not in words
    assert words[words.index("--python-version") + 1] == "3.6"


def test_closure_judges_by_the_board(tmp_path, wheel):
    wheel(tmp_path, "pip")
    wheel(tmp_path, "unneeded")
    wheel(tmp_path, "mas_edge", requires=["one", 'four; extra == "board"', 'five; extra == "other"'])
    wheel(tmp_path, "one", requires=["two; sys_platform == 'win32'", "three>=2; python_version == '3.10'", "mas-edge"])
    old = closure(tmp_path, board_environment("3.10", "aarch64"))
    new = closure(tmp_path, board_environment("3.13", "aarch64"))
    assert old.missing == {"three>=2", "four"}
    assert new.missing == {"four"}
    assert {path.name.split("-")[0] for path in new.needed} == {"mas_edge", "one", "pip"}


def test_closure_what_is_no_wheel_is_refused(tmp_path, wheel):
    wheel(tmp_path, "mas_edge", requires=["!!"])
    with pytest.raises(WheelhouseInvalid, match="a requirement that cannot be read: '!!'"):
        closure(tmp_path, {})
    (tmp_path / "one-1.0-py3-none-any.whl").write_bytes(b"x")
    with pytest.raises(WheelhouseInvalid, match="is no wheel"):
        closure(tmp_path, {})


def test_bill_of_materials_names_every_wheel_with_its_digest(tmp_path, wheel):
    for name in ("first", "second"):
        wheel(tmp_path, name)
    files = {path.name: path.name[0] * 64 for path in tmp_path.glob("*.whl")}
    made = bill(tmp_path, files)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.5")
    assert [each["name"] for each in made["components"]] == ["first", "second"]
    for each, digest in zip(made["components"], sorted(files.values()), strict=True):
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert each["hashes"] == [{"alg": "SHA-256", "content": digest}]
