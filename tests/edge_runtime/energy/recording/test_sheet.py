import pytest

from devices.health import Health
from edge_runtime.energy.recording.recording import PowerReading
from edge_runtime.energy.recording.sheet import Sheet, SheetInvalid, read

HEALTH = Health(temperature_c=61.25, cpu_hz=1.5e9, throttled=("under_voltage",), throttled_since_boot=())


def write(path, count=3):
    sheet = Sheet(path, "pmic")
    for n in range(count):
        sheet.add(PowerReading(seconds=n * 0.1, watts=2.5 + n, mark="a, b"), 1.7e9 + n, HEALTH if n else None)
    return sheet


def test_sheet_comes_back(tmp_path):
    write(tmp_path / "a.csv").close()
    source, rows = read(tmp_path / "a.csv")
    assert source == "pmic"
    assert rows[2] == PowerReading(seconds=0.2, watts=4.5, mark="a, b")
    assert (tmp_path / "a.csv").read_text().splitlines()[2].endswith(",pmic,61.2,1500,under_voltage")


def test_sheet_is_there_before_it_is_closed(tmp_path):
    sheet = write(tmp_path / "a.csv")
    assert len(read(tmp_path / "a.csv")[1]) == 3
    sheet.close()


def test_sheet_cut_off_in_its_last_line_is_read_up_to_there(tmp_path):
    write(tmp_path / "a.csv", 4).close()
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "b.csv").write_text(text[: text.rindex("\n", 0, -1) + 5])
    assert len(read(tmp_path / "b.csv")[1]) == 3


def test_sheet_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "a.csv").write_text("before")
    with pytest.raises(SheetInvalid, match="is there already: give another name"):
        Sheet(tmp_path / "a.csv", "pmic")
    assert (tmp_path / "a.csv").read_text() == "before"
    with pytest.raises(SheetInvalid, match="cannot be written"):
        Sheet(tmp_path / "nowhere/a.csv", "pmic")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds 0 readings"),
        ("hello\nyou\n", "line 2, is no reading"),
        ("seconds,watts,mark,source\n0,1,a,x\n1,soon,a,x\n", "line 3, is no reading"),
        ("seconds,watts,mark,source\n0,1,a,x\n1,nan,a,x\n", "line 3, cannot be a reading"),
        ("seconds,watts,mark,source\n0,1,a,x\n1,1,a,y\n", "2 readings of 2 sources"),
        ("seconds,watts,mark,source\n0,1,a,x\n", "holds 1 readings"),
    ],
)
def test_read_of_something_else_is_refused(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SheetInvalid, match=said):
        read(tmp_path / "a.csv")


def test_read_of_a_missing_or_binary_file_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\0")
    for name in ("a.csv", "nowhere.csv"):
        with pytest.raises(SheetInvalid):
            read(tmp_path / name)
