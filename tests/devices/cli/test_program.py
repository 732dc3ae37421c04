import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from devices.cli.program import COMPLETION, SCRIPTS, add_completion, called

ROOT = Path(__file__).parents[3]


def test_installed_scripts_are_those_of_the_packages():
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    assert project["scripts"] == {script: f"{package}.__main__:main" for package, script in SCRIPTS.items()}


@pytest.mark.parametrize("package", SCRIPTS)
def test_program_is_called_as_it_was_started(package, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"/opt/mas-edge/bin/{SCRIPTS[package]}", "--help"])
    assert called(package) == SCRIPTS[package]
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{package}/__main__.py"])
    assert called(package) == f"python -m {package}"


def test_completion_without_its_package_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    parser = argparse.ArgumentParser()
    add_completion(parser, "devices")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([COMPLETION, "bash"])
    assert caught.value.code == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.workstation
@pytest.mark.process
@pytest.mark.parametrize(
    ("package", "words", "expected"),
    [
        ("broker_server", "mas-edge-server enr", "enrol"),
        ("broker_server", "mas-edge-server enrol --da", "--days"),
        ("edge_runtime", "mas-edge-agent train --epo", "--epochs"),
        ("export", "mas-edge-export comp", "compile"),
        ("devices", "mas-edge-devices fl", "flash"),
    ],
)
def test_bash_completes_a_command_line(package, words, expected, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"{package}.__main__").main([COMPLETION, "bash"])
    assert caught.value.code == 0
    script = capsys.readouterr().out
    asked = words.split()
    ask = f"""
COMP_WORDS=({words}); COMP_CWORD={len(asked) - 1}; COMP_LINE='{words}'; COMP_POINT={len(words)}
set -- {asked[0]} {asked[-1]} {asked[-2]}
$(complete -p {asked[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/') "$@"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=False, timeout=30)
    assert expected in done.stdout.split(), done
