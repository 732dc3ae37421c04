"""When a bundle is made again, and when not."""

import json
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")

from edge_runtime.wire import bundle_folder  # noqa: E402
from export import provenance  # noqa: E402
from export.__main__ import main  # noqa: E402
from export.model_file import build_model  # noqa: E402
from export.object_digest import Indescribable  # noqa: E402

pytestmark = pytest.mark.workstation

MODEL = """
    import json
    from pathlib import Path

    import torch
    from torch import nn

    from export.losses import l1
    from export.model import MultiTaskModel
    from parts_of_mine.layers import WIDTH, Scaled

    SETTINGS = json.loads((Path(__file__).parent / "settings.json").read_text())

    def build():
        return MultiTaskModel(
            encoder=nn.Sequential(nn.Linear(3, WIDTH), Scaled()),
            heads={"a": nn.Linear(WIDTH, 1)},
            losses={"a": lambda p, t: SETTINGS["weight"] * l1(p, t)},
            example_input=torch.ones(2, 3),
            example_targets={"a": torch.ones(2, 1)},
        )
"""
LAYERS = """
    from torch import nn

    WIDTH = 4

    class Scaled(nn.Module):
        def forward(self, x):
            from .scale import FACTOR

            return FACTOR * x.relu()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model of several files. Each time it is read all anew, as by a process of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, text in {
        "mine.py": MODEL,
        "settings.json": '{"weight": 1.0}',
        "parts_of_mine/__init__.py": "",
        "parts_of_mine/layers.py": LAYERS,
        "parts_of_mine/scale.py": "FACTOR = 2.0",
        "another.py": "",
        "broken_of_mine.py": "not Python!",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    yield tmp_path
    forget_modules()


def forget_modules():
    for name in [name for name in sys.modules if name.startswith(("parts_of_mine", "model_mine"))]:
        del sys.modules[name]


def digest(folder, *, seed=0, options=()):
    forget_modules()
    return provenance.digest_of_sources(folder / "mine.py", build_model(f"{folder / 'mine.py'}:build", seed), options)


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CHANGES = {
    "the_file": ("mine.py", "torch.ones(2, 1)", "torch.ones(2, 1) * 2"),
    "a_comment": ("mine.py", "SETTINGS =", "# Settings.\nSETTINGS ="),
    "a_neighbour": ("parts_of_mine/layers.py", "relu", "tanh"),
    "a_late_import": ("parts_of_mine/scale.py", "2.0", "3.0"),
    "a_file_that_was_read": ("settings.json", "1.0", "3.0"),
}


def test_change_of_what_decides_a_bundle_changes_the_digest(folder):
    found = {"nothing": digest(folder), "weights": digest(folder, seed=1), "options": digest(folder, options=("a", 2))}
    for case, (name, old, new) in CHANGES.items():
        text = (folder / name).read_text()
        replace(folder / name, old, new)
        found[case] = digest(folder)
        (folder / name).write_text(text)
    assert len(set(found.values())) == len(found)
    (folder / "another.py").write_text("x = 3")
    (folder / "parts_of_mine" / "another.py").write_text("import runpy")
    assert digest(folder) == found["nothing"]  # nobody imports them


def test_environment_is_part_of_the_digest_of_files_that_look_at_it(folder, monkeypatch):
    before = digest(folder)
    monkeypatch.setenv("WIDTH_OF_MINE", "3")
    assert digest(folder) == before
    replace(folder / "parts_of_mine" / "scale.py", "2.0", "2.0\nimport os\nHOME = os.environ.get('HOME')")
    looking = digest(folder)
    monkeypatch.setenv("WIDTH_OF_MINE", "4")
    assert digest(folder) != looking


def test_installed_packages_are_part_of_the_digest(folder, tmp_path, monkeypatch):
    before = digest(folder)
    installed = tmp_path / "installed" / "a_package-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: a_package\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(installed.parent)
    assert digest(folder) != before


UNKNOWN = {
    "import_by_name": "import importlib",
    "code_from_text": "exec('x = 1')",
    "open_file": "f = open(__file__)",
    "import_of_no_python": "def f(): import broken_of_mine",
}


@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_known_gives_no_digest(case, folder):
    replace(folder / "parts_of_mine" / "layers.py", "WIDTH = 4", f"WIDTH = 4\n{UNKNOWN[case]}")
    with pytest.raises(Indescribable):
        digest(folder)


def test_model_is_compiled_again_only_when_something_changed(folder, capsys):
    out = folder / "bundle"

    def compiled(*more):
        forget_modules()
        assert main(["compile", f"{folder / 'mine.py'}:build", "--out", str(out), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    first = compiled()
    assert first.pop("compiled") is True
    manifest = (out / bundle_folder.MANIFEST).read_bytes()
    assert compiled() == first | {"compiled": False}
    forget_modules()
    assert main(["compile", f"{folder / 'mine.py'}:build", "--out", str(out)]) == 0
    assert f"{out} is up to date (--anew compiles it all the same)" in capsys.readouterr().out
    assert compiled("--anew")["compiled"]
    assert (out / bundle_folder.MANIFEST).read_bytes() == manifest

    bundle_folder.graph_path(out, "head.a.step").write_bytes(b"damaged")
    assert compiled("--name", "bundle")["compiled"]
    replace(folder / "parts_of_mine" / "scale.py", "2.0", "3.0")
    assert compiled()["compiled"]


def test_bundle_that_is_not_what_was_written_is_not_up_to_date(folder):
    manifest = folder / bundle_folder.MANIFEST
    manifest.write_text("{}")
    assert provenance.up_to_date(folder, "sources") is None
    provenance.write(folder, "sources")
    assert provenance.up_to_date(folder, "sources") is None  # it names no files
    (folder / provenance.NAME).write_text("{}")
    assert provenance.up_to_date(folder, "sources") is None


def test_model_whose_sources_cannot_be_known_is_compiled_each_time(folder, capsys):
    replace(folder / "parts_of_mine" / "layers.py", "WIDTH = 4", "WIDTH = 4\nimport runpy")
    out = folder / "bundle"
    assert main(["compile", f"{folder / 'mine.py'}:build", "--out", str(out)]) == 0
    assert "will be compiled each time: what " in capsys.readouterr().err
    assert not (out / provenance.NAME).exists()
