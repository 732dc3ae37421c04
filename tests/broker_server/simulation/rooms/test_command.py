import json

import pytest

pytest.importorskip("PIL")

from broker_server.__main__ import main

pytestmark = pytest.mark.workstation
FEW = ("--buildings", "1", "--images", "8", "--size", "16", "--processes", "1")


def test_rooms_says_what_was_drawn(tmp_path, capsys):
    assert main(["rooms", "--out", str(tmp_path), *FEW, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folders": [f"{tmp_path}/building_00"], "images": 8, "new": 8}
    assert main(["rooms", "--out", str(tmp_path), *FEW]) == 0
    assert capsys.readouterr().out == f"0 views drawn, 8 were there: 1 buildings in {tmp_path}\n"


def test_rooms_asked_for_nonsense(tmp_path, capsys):
    assert main(["rooms", "--out", str(tmp_path), "--images", "0"]) == 2
    assert "`$.images`" in capsys.readouterr().err
