"""Power sensors under the kernel's industrial I/O: INA3221 on Jetson modules up to JetPack 4, and ina2xx-adc.

NVIDIA's driver has `in_power<n>_input` in milliwatts and `rail_name_<n>`; the mainline driver has `in_power<n>_raw`,
which times `in_power<n>_scale` is in milliwatts.
"""

# coverage: every branch

import re
from pathlib import Path

from devices.meters.meter import INA_HZ, MeterAbsent, MeterFacts
from devices.meters.rails import UNUSED, Rail, RailMeter, whole_board
from devices.sysfs import NumberFile, numbered, read_number, read_text

_PLACES = (
    "sys/bus/iio/devices/iio:device*",
    "sys/bus/i2c/drivers/ina3221x/*/iio:device*",
    "sys/bus/i2c/drivers/ina3221x/*/iio_device",
)
_POWER = re.compile(r"in_power(\d+)_(input|raw)")


def open_iio(root: Path = Path("/")) -> RailMeter:
    """Open a meter of the power that industrial I/O measures. Raises MeterAbsent."""
    folders = {path.resolve(): path for place in reversed(_PLACES) for path in root.glob(place)}
    rails: list[Rail] = []
    for folder in sorted(folders, key=numbered):
        rails += _rails(folder)
    if not rails:
        raise MeterAbsent("iio: no device under /sys/bus/iio/devices measures power that can be read")
    chosen = whole_board(rails)
    for rail in rails:
        if rail not in chosen:
            rail.close()
    meter = RailMeter(
        MeterFacts(
            source="iio",
            covers=f"{', '.join(rail.name for rail in chosen)}: all that these rails feed, and nothing before them",
            rate_hz=INA_HZ,
            resolution=0.005 * len(chosen),
            gain_error=0.02,
        ),
        chosen,
    )
    if meter.read() is None:
        meter.close()
        raise MeterAbsent("iio: the sensor gives no number now, or 0 W, which no board takes")
    return meter


def _rails(folder: Path) -> list[Rail]:
    found = []
    for path in sorted(folder.glob("in_power*"), key=numbered):
        match = _POWER.fullmatch(path.name)
        if match is None:
            continue
        name = read_text(folder / f"rail_name_{match[1]}")
        if name is not None and UNUSED.fullmatch(name):
            continue
        milli = 1.0 if match[2] == "input" else read_number(folder / f"in_power{match[1]}_scale")
        if milli is None:
            continue
        try:
            file = NumberFile(path)
        except OSError:
            continue
        found.append(Rail(name=name or f"{read_text(folder / 'name')} power{match[1]}", factor=milli / 1e3, power=file))
    return found
