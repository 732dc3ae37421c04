import re

import pytest

from broker_server import report as reports
from broker_server.report_energy import MAX_PLANS, card, cell, section


def rows(page):
    """The cells of every line of its tables."""
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in re.findall(r"<tr>(.*?)</tr>", page)]


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
        return reports.build(it.store)

    return make


def test_section_shows_groups_phases_and_devices(report, make_energy):
    parts = {"download": 1.0, "train": 9.0}
    hot = make_energy(joules=10.0, phases=parts, temperature_max_c=71.6, throttled=("under_voltage",))
    found = report(hot, make_energy(joules=20.0, phases={"train": 20.0}))
    (head, whole, *_, everything), devices = rows(section(found))[:5], rows(section(found))[6:]
    assert head == [
        "group", "download", "train", "in all", "±", "above idle", "at most", "held back by",
    ]  # fmt: skip
    assert whole[:4] == ["a+b+c", "4.00 J", "116 J", "120 J"]  # two rounds of training, two of measuring
    assert whole[4:] == ["12.0 J", "88.0 J", "72 °C", "under_voltage"]
    assert everything[0] == "all"
    assert everything[3] == "300 J"
    assert devices[0][:5] == ["1", "a+b+c", "x", "10.0 J", "1.00 J"]
    assert devices[0][5:] == ["6.00 J", "1.00 W", "rapl", "10.0", "100 %", "72 °C", "under_voltage"]
    assert len(devices) == 12
    assert card(found) == ("300 J", "energy of the devices")
    assert cell(found.rounds[0]) == "30.0 J"


def test_section_labels_estimates_and_what_is_left_out(report, make_energy):
    found = report(make_energy(joules=5.0, source="model", estimated=True), make_energy(joules=None))
    page = section(found)
    assert "5.00 J (estimated)" in page
    assert "≥ 5.00 J (estimated, 1 of 2 measured)" in cell(found.rounds[0])
    assert "no meter" in page
    for line in rows(page):
        figures = [text for text in line if re.fullmatch(r"(≥ )?[\d.]+ [JW]\b.*", text)]
        assert all("(estimated" in text for text in figures)
        assert not any(text.startswith("0 J") for text in line)
        assert all(text.startswith("≥") for text in line[1:5] if line[0] in {"a+b+c", "all"})
    assert card(found) == ("≥ 50.0 J (estimated, 10 of 20 measured)", "energy of the devices")


def test_nothing_measured_is_no_section_and_no_card(report):
    found = report(None, None)
    assert (section(found), card(found), cell(found.rounds[0])) == ("", None, "–")


def test_upload_that_was_said_later_is_in_the_sum(report, make_energy):
    after = make_energy(joules=12.0, phases={"train": 10.0, "upload": 2.0})
    found = report(make_energy(joules=10.0), make_energy(joules=10.0), spent=after)
    assert cell(found.rounds[0]) == "22.0 J"
    assert "upload" in rows(section(found))[0]


def test_section_lists_only_the_newest(report, make_energy):
    found = report(make_energy(source="<b>"), None)
    many = [*found.rounds] * 100
    found.rounds[:] = many
    page = section(found)
    assert f"The newest {MAX_PLANS} of 600" in page
    assert "<b>" not in page
