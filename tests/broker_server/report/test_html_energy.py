import re

import pytest

pytest.importorskip("matplotlib")

from broker_server.report import build as reports
from broker_server.report.html import render
from broker_server.report.html_energy import MAX_PLANS

pytestmark = pytest.mark.workstation


def section(report):
    """The page's section on energy; empty without one."""
    found = re.search(r"<section id=energy>.*?</section>", render(report), re.DOTALL)
    return found[0] if found else ""


def rows(page):
    """The cells of every line of its tables, notes in brackets."""
    page = page.replace("<wbr>", "")
    lines = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in re.findall(r"<tr>(.*?)</tr>", page)]
    return [[re.sub(r"<small>(.*?)</small>", r" (\1)", cell) for cell in line] for line in lines]


def card(report):
    """The card on energy: its figure and its words; None without one."""
    found = re.search(r"<div class=card><b>([^<]*)</b><span>(energy[^<]*)</span>", render(report))
    return found.groups() if found else None


def cell(report):
    """The energy of the first round, in the table of rounds."""
    found = re.search(r"<section id=rounds>.*?</tr>\n(<tr>.*?</tr>)", render(report), re.DOTALL)
    return rows(found[1].replace("\n", ""))[0][-1]


@pytest.fixture
def report(world):
    """Of two devices, with the energies given."""

    def make(x, y, spent=None):
        it = world()
        it.device("x", energy=x).spent = spent
        it.device("y", energy=y)
        for device in it.link.devices.values():
            device.start()
        it.until_finished()
        return reports.build(it.journal)

    return make


@pytest.mark.slow
def test_section_shows_groups_phases_and_devices(report, make_energy):
    parts = {"download": 1.0, "train": 9.0}
    hot = make_energy(joules=10.0, phases=parts, temperature_max_c=71.6, throttled=("under_voltage",))
    found = report(hot, make_energy(joules=20.0, phases={"train": 20.0}))
    lines = rows(section(found))
    table, devices = {line[0]: line[1:] for line in lines[:8]}, lines[9:]
    assert table[""] == ["a+b+c", "a+b", "c", "all"]
    # Each group has two rounds of training and one of measuring, a+b+c two of these.
    assert table["download"] == ["4.00 J", "3.00 J", "3.00 J", "10.0 J"]
    assert table["train"] == ["116 J", "87.0 J", "87.0 J", "290 J"]
    assert table["in all"] == ["120 J", "90.0 J", "90.0 J", "300 J"]
    assert table["±"] == ["12.0 J", "9.00 J", "9.00 J", "30.0 J"]
    assert table["above idle"] == ["88.0 J", "66.0 J", "66.0 J", "220 J"]
    assert table["hottest"] == ["72 °C"] * 4
    assert table["held back by"] == ["under_voltage"] * 4
    assert devices[0][:5] == ["1", "a+b+c", "x", "10.0 J", "1.00 J"]
    assert devices[0][5:] == ["6.00 J", "1.00 W", "rapl", "10.0", "100 %", "72 °C", "under_voltage"]
    assert len(devices) == 12
    assert card(found) == ("300 J", "energy")
    assert cell(found) == "30.0 J"


@pytest.mark.slow
def test_section_labels_estimates_and_what_is_left_out(report, make_energy):
    found = report(make_energy(joules=5.0, source="model", estimated=True), make_energy(joules=None))
    page = section(found)
    lines = rows(page)
    assert "no meter" in page
    assert ["in all", *["≥ 20.0 J (estimated, 4 of 8 measured)", "≥ 15.0 J (estimated, 3 of 6 measured)"]] == lines[2][
        :3
    ]
    assert cell(found) == "≥ 5.00 J (estimated, 1 of 2 measured)"
    figures = [text for line in lines for text in line if re.match(r"(≥ )?[\d.]+ [JW]\b", text)]
    assert len(figures) > 12
    assert all("(estimated" in text for text in figures)
    assert not any(text.startswith("0 J") for text in figures)
    assert all(text.startswith("≥") for line in lines[1:5] for text in line[1:])
    assert card(found) == ("≥ 50.0 J", "energy: estimated, 10 of 20 measured")


@pytest.mark.slow
def test_nothing_measured_is_no_section_and_no_card(report):
    found = report(None, None)
    assert "No device measured any" in section(found)
    assert "<table" not in section(found)
    assert (card(found), cell(found)) == (None, "–")


@pytest.mark.slow
def test_upload_that_was_reported_later_is_in_the_sum(report, make_energy):
    after = make_energy(joules=12.0, phases={"train": 10.0, "upload": 2.0})
    found = report(make_energy(joules=10.0), make_energy(joules=10.0), spent=after)
    assert cell(found) == "22.0 J"
    assert "upload" in [line[0] for line in rows(section(found))]


@pytest.mark.slow
def test_section_lists_only_the_newest(report, make_energy):
    found = report(make_energy(source="<b>"), None)
    many = [*found.rounds] * 100
    found.rounds[:] = many
    page = section(found)
    assert f"the newest {MAX_PLANS} of 600" in page
    assert "<b>" not in page
