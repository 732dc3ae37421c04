import csv
import io

import msgspec
import pytest

pytest.importorskip("jwt")
pytest.importorskip("jinja2")

from broker_server import __main__ as server
from broker_server.report import build as reports

pytestmark = pytest.mark.workstation


@pytest.fixture
def run_folder(make_report, tmp_path):
    folder = tmp_path / "run"
    reports.write(folder, make_report(), {})
    return folder


def test_report_of_a_run_is_a_page_json_or_a_table(run_folder, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert server.main(["report", str(run_folder), "--open"]) == 0
    assert capsys.readouterr().out.strip() == str(run_folder / "report.html")
    assert opened == [(run_folder / "report.html").as_uri()]
    assert server.main(["report", str(run_folder), "--format", "json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["strategy"] == "mas"
    assert server.main(["report", str(run_folder), "--format", "csv"]) == 0
    assert len(list(csv.reader(io.StringIO(capsys.readouterr().out)))) == 5


def test_a_page_with_predictions_is_not_written_over(run_folder, capsys):
    (run_folder / "report.html").write_text("with predictions")
    assert server.main(["report", str(run_folder)]) == 0
    assert (run_folder / "report.html").read_text() == "with predictions"


def test_runs_are_compared_side_by_side(run_folder, tmp_path, capsys):
    assert server.main(["compare", str(run_folder), str(run_folder), "--out", str(tmp_path / "both")]) == 0
    assert "2 runs side by side" in (tmp_path / "both" / "comparison.html").read_text()
    assert len(msgspec.json.decode((tmp_path / "both" / "comparison.json").read_bytes())) == 2


def test_a_damaged_report_is_named(run_folder, capsys):
    (run_folder / "report.json").write_text("{")
    assert server.main(["report", str(run_folder)]) == 3
    assert "report.json is not a report of this version" in capsys.readouterr().err
