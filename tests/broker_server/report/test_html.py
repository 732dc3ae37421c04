import numpy as np
import pytest

pytest.importorskip("matplotlib")

import msgspec
from jinja2 import UndefinedError

from broker_server.report import build as reports
from broker_server.report import html
from broker_server.report.html import Picture, PictureRow, render, write
from broker_server.report.side_by_side import run

pytestmark = pytest.mark.workstation


@pytest.fixture
def finished(world):
    world = world()
    world.device("x").start()
    world.device("y").start()
    world.until_finished()
    return world


@pytest.mark.slow
def test_page_needs_nothing_else(finished, tmp_path):
    picture = np.random.default_rng(0).random((8, 8))
    rows = [
        PictureRow(
            title="<b>depth</b>",
            pictures=(Picture(title="truth", image=picture), Picture(title="png", image=b"\x89PNG")),
        )
    ]
    path = write(
        tmp_path, reports.build(finished.journal), affinities=reports.affinities(finished.journal), predictions=rows
    )
    page = path.read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "&lt;b&gt;depth" in page
    assert page.count("data:image/png;base64,") == 2
    assert "times of 100" in page
    assert "fp32, 100.0 %" in page


def test_page_says_how_many_updates_came_by_which_scheme(make_report):
    report = make_report()
    row = msgspec.structs.replace(report.rounds[0], update_schemes={"fp32": 1, "int8": 2}, update_ratio=None)
    assert "1 fp32, 2 int8" in render(msgspec.structs.replace(report, rounds=[row]))


def test_page_has_the_metrics_that_were_measured(make_report):
    report = make_report()
    assert "Test metrics" not in render(report)
    first = {"a": reports.MetricMean(name="miou", value=0.5)}
    last = {"b": reports.MetricMean(name="angular_error_deg", value=12.25)}
    page = render(msgspec.structs.replace(report, test_metrics={"before": first, "merged": None, "end": last}))
    assert "<td>a</td><td>mIoU ↑</td><td class=n>0.5000</td><td class=n>–</td>" in page
    assert "<td>b</td><td>angular error (°) ↓</td><td class=n>–</td><td class=n>12.25</td>" in page


def test_page_of_a_federation_that_has_just_begun(world):
    world = world()
    page = render(reports.build(world.journal))
    assert "MAS" in page
    assert "data:image" not in page


def test_page_shows_the_outcome_of_ort_training_artifacts(make_report):
    report = make_report()
    assert "training artifacts" not in render(report)
    outcomes = {
        "a": reports.OrtTrainingReport(max_relative_error=2e-4, problem=None),
        "b": reports.OrtTrainingReport(max_relative_error=None, problem="no gradient for <Round>"),
    }
    page = render(msgspec.structs.replace(report, ort_training=outcomes))
    assert "a: within 0.0002 of the portable graphs" in page
    assert "b: none<span class=note> no gradient for &lt;Round&gt;" in page


def test_page_escapes_names(make_report, make_round):
    hostile = "<img src=x>"
    rounds = [make_round(1, hostile, hostile, {hostile: 1.0}, missing=(hostile,))]
    facts = {"strategy": hostile, "tasks": (hostile,), "versions": {"<": "&"}, "settings": {hostile: hostile}}
    page = render(make_report(rounds=rounds, affinity=None, **facts))
    assert "<img" not in page.lower()
    assert "&lt;img" in page


def test_page_draws_losses_that_can_be_asked_and_hidden(make_report):
    page = render(make_report())
    assert "<title>a, round 2: 1.0000, 50 % of its start</title>" in page
    assert "<input type=checkbox id='curve-1' checked><label for='curve-1'" in page
    assert ".curves #curve-1:not(:checked)~svg .curve-1{display:none}" in page
    assert "<script" not in page


def test_page_says_who_gave_no_result_and_how_to_use_what_came_out(make_report):
    page = render(make_report())
    assert "<td>z</td><td class=n>1</td><td class=n>1</td>" in page
    assert "--weights models/b.safetensors --tasks b --out 2.onnx" in page
    assert "title='a → b: -0.2, measured 4 times'" in page
    assert "No device measured any" in page


def test_names_are_as_long_as_there_is_room():
    assert html._shortened("depth", 40) == "depth"
    assert html._shortened("depth+normals", 40) == "dept…"


def test_page_of_several_runs_marks_the_least(make_report):
    page = html.render_side_by_side([run("one", make_report()), run("<two>", make_report(wall_s=1.0))])
    assert "<b>1 s</b>" in page
    assert "&lt;two&gt;" in page


def test_template_refuses_a_name_that_it_is_not_given():
    with pytest.raises(UndefinedError):
        html._templates().from_string("{{ nothing.at_all }}").render()
