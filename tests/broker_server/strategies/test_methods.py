"""The table of methods: whole, printed, and the same as the README's."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from broker_server.strategies.methods import METHODS, shown
from broker_server.strategies.settings import StrategyName

ROOT = Path(__file__).parents[3]
NAMES = [method.name for method in METHODS]


def test_methods_have_every_strategy_once():
    assert len(set(NAMES)) == len(NAMES)
    assert set(get_args(StrategyName)) <= set(NAMES)


def test_methods_are_rows_of_the_readme_with_their_commands():
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Methods\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|.*\| `([^`]*)` \|$", table, re.MULTILINE) == [
        (method.name, method.example) for method in METHODS
    ]


def test_methods_shown_have_all_that_is_known():
    text = shown(METHODS)
    for method in METHODS:
        assert all(part in text for part in (method.paper, method.sends, method.keeps, method.example))


@pytest.mark.workstation
@pytest.mark.parametrize("json_flag", [True, False])
def test_methods_command_prints(capsys, json_flag):
    pytest.importorskip("jwt")
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    from broker_server.__main__ import main

    assert main(["methods", *(["--json"] if json_flag else [])]) == 0
    printed = capsys.readouterr().out
    assert ([each["name"] for each in json.loads(printed)] == NAMES) if json_flag else printed.startswith("mas\n")


@pytest.mark.workstation
@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_methods_examples_are_commands_that_are_understood(method):
    pytest.importorskip("jwt")
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    from broker_server.__main__ import _parser

    words = shlex.split(method.example)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    assert words[:3] == ["python", "-m", "broker_server"]
    _parser().parse_args(words[3:])
