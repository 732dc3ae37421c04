import json

import msgspec
import pytest

from broker_server.__main__ import main
from broker_server.report.build import Report, ReportImpossible
from broker_server.report.energy_costs import break_down, read, words


def energy(joules, *, measured=2, plans=2, phases=None, **changes):
    parts = {
        name: {"seconds": 1.0, "energy_j": value, "estimated_j": 0.0, "measured": measured, "plans": plans}
        for name, value in (phases or {}).items()
    }
    return {
        "energy_j": joules,
        "estimated_j": None if joules is None else 0.0,
        "estimated": False,
        "uncertainty_j": None if joules is None else 1.5,
        "above_idle_j": None,
        "measured": measured,
        "plans": plans,
        "partial": 0 < measured < plans,
        "phases": parts,
        "temperature_max_c": None,
        "throttled": None,
        **changes,
    }


def trained(number, phase, group, losses, joules):
    return {
        "round": number,
        "phase": phase,
        "group": group,
        "clients": ["pi-01", "pi-02"],
        "train_loss": losses,
        "val_loss": None,
        "wall_s": 1.0,
        "bytes_up": None,
        "bytes_down": None,
        "update_schemes": {"fp32": 2},
        "update_ratio": None,
        "peak_rss_bytes": None,
        "energy": joules,
        "energy_by_device": {},
    }


def report(**changes):
    found = {
        "strategy": "mas",
        "tasks": ["depth", "edges", "normals"],
        "seed": 0,
        "versions": {},
        "affinity": None,
        "split": None,
        "wall_s": None,
        "rounds": [
            trained(n, phase, group, {"depth": loss}, energy(joules))
            for n, phase, group, loss, joules in [
                (0, "merge", "depth+edges+normals", 3.0, 40.0),
                (1, "merge", "depth+edges+normals", 2.0, 60.0),
                (2, "split", "depth+normals", 1.5, 30.0),
                (3, "split", "edges", 0.5, 20.0),
            ]
        ],
        "energy": {
            "total": energy(160.0, above_idle_j=100.0),
            "groups": {
                "depth+edges+normals": energy(105.0, phases={"train": 90.0, "upload": 15.0}),
                "depth+normals": energy(33.0, phases={"train": 33.0, "probe": None}),
                "edges": energy(22.0, measured=1, estimated=True, phases={"train": 22.0}),
            },
        },
        "test_loss": {"before": {"total": 6.0}, "merged": {"total": 4.0}, "end": {"total": 3.5}},
    }
    return msgspec.convert(found | changes, Report)


def test_energy_by_group_phase_and_task():
    found = break_down(report())
    assert found.total.energy_j == 160.0
    assert found.phases == {"train": 145.0, "upload": 15.0}
    assert found.tasks == pytest.approx({"depth": 35 + 16.5, "edges": 35 + 22, "normals": 35 + 16.5})
    assert sum(found.tasks.values()) == pytest.approx(160.0)


def test_energy_for_what_was_gained():
    merged, split, whole = break_down(report()).gains
    assert (merged.stage, merged.energy_j, merged.j_per_point) == ("merge", 100.0, 50.0)
    assert (split.stage, split.energy_j, split.j_per_point) == ("split", 50.0, 100.0)
    assert whole.j_per_point == pytest.approx(160 / 2.5)


BY_TASK = {
    "before": {"depth": 3.0, "edges": 2.0, "normals": 1.0, "total": 6.0},
    "merged": {"depth": 2.0, "edges": 1.0, "normals": 1.0, "total": 4.0},
    "end": {"depth": 1.0, "edges": 1.5, "normals": 0.9, "total": 3.4},
}


def test_energy_for_what_groups_and_tasks_gained():
    found = break_down(report(test_loss=BY_TASK))
    merged, pair, alone = found.group_gains.values()
    assert (merged.loss_before, merged.loss_after, merged.energy_j) == (6.0, 4.0, 105.0)
    assert merged.j_per_point == pytest.approx(105 / 2)
    assert pair.j_per_point == pytest.approx(33 / 1.1)  # depth and normals, from merged to the end
    assert alone.j_per_point is None  # edges became worse by itself
    by_task = found.task_gains
    assert by_task["depth"].j_per_point == pytest.approx((35 + 16.5) / 2)
    assert by_task["edges"].j_per_point == pytest.approx((35 + 22) / 0.5)
    assert by_task["normals"].energy_j == pytest.approx(51.5)
    said = words(found)
    assert "by group\n  depth+edges+normals: 52.5 J (6.0000 → 4.0000, 105.0 J)" in said
    assert "  edges: no price (1.0000 → 1.5000, 22.0 J)\n" in said


def test_energy_of_a_run_without_a_split_are_for_what_the_merged_rounds_gained():
    found = break_down(report(test_loss={**BY_TASK, "end": None}))
    assert found.gains[-1].j_per_point == pytest.approx(160 / 2)
    assert found.task_gains["depth"].loss_after == 2.0
    assert found.group_gains["edges"].loss_after is None


@pytest.mark.parametrize(
    "losses",
    [
        {"before": None, "merged": {"total": 4.0}, "end": None},
        {"before": {"total": 1.0}, "merged": {"total": 4.0}, "end": {"total": 9.0}},
        {"before": {"depth": 1.0}, "merged": {}, "end": {}},
    ],
    ids=["not measured", "lost", "without a sum"],
)
def test_energy_without_a_gain_have_no_price(losses):
    assert [gain.j_per_point for gain in break_down(report(test_loss=losses)).gains] == [None, None, None]


def test_energy_not_measured_are_none_and_never_zero():
    nothing = energy(None, measured=0)
    found = break_down(
        report(
            energy={"total": nothing, "groups": {"depth": nothing}},
            rounds=[trained(0, "merge", "depth", {}, nothing)],
        )
    )
    assert (found.phases, found.tasks) == ({}, {})
    assert "in all not measured (0 of 2 plans measured)" in words(found)


def test_energy_of_a_group_whose_name_was_cut():
    found = break_down(report(energy={"total": energy(9.0), "groups": {"depth+edg++" + "a" * 32: energy(9.0)}}))
    assert found.tasks == {"depth": 9.0}


def test_words_say_what_is_left_out():
    said = words(break_down(report()))
    assert "in all 160.0 J (± 1.5 J)\n  above the idle boards 100.0 J\n" in said
    assert "  edges: 22.0 J (± 1.5 J, 1 of 2 plans measured, estimated in part)\n" in said
    assert "by task, each group's divided evenly\n" in said
    assert "  merge: 50.0 J (6.0000 → 4.0000, 100.0 J)\n" in said


def test_read_finds_the_report(tmp_path):
    data = msgspec.json.encode(report())
    for place in ("report.json", "server/report/report.json"):
        path = tmp_path / place.replace("/", "_") / place
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        assert read(tmp_path / place.replace("/", "_")).energy.total.energy_j == 160.0
    assert read(tmp_path / "report.json/report.json").energy.total.energy_j == 160.0


def test_read_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(ReportImpossible, match="has no report.json: `python -m broker_server report` writes one"):
        read(tmp_path)
    (tmp_path / "report.json").write_text('{"tasks": []}')
    with pytest.raises(ReportImpossible, match="is not a report of this version .* writes it again"):
        read(tmp_path)
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").mkdir()
    with pytest.raises(ReportImpossible):
        read(tmp_path)


def test_energy_report_command(tmp_path, capsys):
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report()))
    assert main(["energy-report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("in all 160.0 J")
    assert main(["energy-report", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["edges"] == 57.0
    assert main(["energy-report", str(tmp_path / "nowhere")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.workstation
def test_energy_report_plot(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report()))
    assert main(["energy-report", str(tmp_path), "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_older_report_is_read():
    """As the version before wrote it: `official` for `ort_training`, and without evaluations and metrics."""
    before = msgspec.to_builtins(report()) | {"official": {"a": {"max_relative_error": 0.1, "problem": None}}}
    for key in ("ort_training", "evaluations", "test_metrics"):
        del before[key]
    assert msgspec.convert(before, Report) == report()


@pytest.mark.workstation
def test_merged_phase_has_the_planner_s_name():
    pytest.importorskip("jwt")
    import numpy as np

    from broker_server.grouping.affinity import Affinities
    from broker_server.report.energy_costs import MERGE
    from broker_server.strategies.planner import Measurements
    from broker_server.strategies.settings import Grouping

    mas = Grouping().planner(("a", "b"), 0)
    zeros = np.zeros((2, 2))
    none = Affinities(tasks=("a", "b"), values=zeros, counts=zeros.astype(int), variance=zeros, standard_error=zeros)
    known = Measurements(affinities=none)
    before = mas.next([], known)
    assert mas.next([before], known).name == MERGE
