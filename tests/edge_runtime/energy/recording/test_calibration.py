import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.energy.recording.calibration import CalibrationInvalid, encode, fit, read


@given(gain=st.floats(0.6, 1.8), offset=st.floats(-1, 1), low=st.floats(1, 5), spread=st.floats(1, 20))
def test_fit_of_two_loads_makes_readings_true(gain, offset, low, spread):
    loads = [(gain * w + offset, w) for w in (low, low + spread)]
    made = fit("pmic", loads)
    for true, got in loads:
        assert made.true_w(got) == pytest.approx(true, abs=1e-6)
    assert made.residual_w == pytest.approx(0, abs=1e-6)


def test_fit_of_three_loads_says_what_is_left():
    made = fit("pmic", [(2.0, 2.0), (4.0, 4.1), (6.0, 6.0)])
    assert 0.03 < made.residual_w < 0.1


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        ([(2.0, 2.0)], "needs two known loads"),
        ([(2.0, 2.0), (2.05, 4.0)], "lie within 0.05 W"),
        ([(2.0, 2.0), (4.0, 2.01)], "read: 0.01 W"),
        ([(2.0, 2.0), (20.0, 3.0)], "off by a factor of 18.00: that is a wrong shunt"),
        ([(2.0, 4.0), (4.0, 2.0)], "off by a factor of -1.00"),
    ],
)
def test_fit_refuses_what_gives_none(loads, said):
    with pytest.raises(CalibrationInvalid, match=said):
        fit("pmic", loads)


def test_file_comes_back(tmp_path):
    made = fit("i2c:ina219", [(2.7, 2.6), (6.4, 6.1)])
    (tmp_path / "c.toml").write_bytes(encode(made))
    found = read(tmp_path / "c.toml")
    assert (found.source, found.gain) == ("i2c:ina219", pytest.approx(made.gain, abs=1e-6))


@pytest.mark.parametrize("text", ["", "gain = 1.0", 'source = "x"\ngain = 9.0\noffset_w = 0.0\nresidual_w = 0.0', "\0"])
def test_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(CalibrationInvalid, match="is no calibration"):
        read(tmp_path / "c.toml")
    with pytest.raises(CalibrationInvalid, match="cannot be read"):
        read(tmp_path / "nowhere.toml")
