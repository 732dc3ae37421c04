"""Opening a meter: by the name of its source, or the best one of this board."""

# coverage: every branch

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from devices.firmware import FirmwareSilent, open_firmware
from devices.meters.hwmon import WHOLE, Chip, find_chips, open_chips
from devices.meters.i2c import open_i2c
from devices.meters.iio import open_iio
from devices.meters.meter import Meter, MeterAbsent
from devices.meters.model import ModelMeter
from devices.meters.plug import PlugMeter
from devices.meters.pmic import PmicMeter
from devices.meters.rapl import RaplMeter

FORMS = (
    "auto, none, rapl, hwmon, hwmon:CHIP, iio, pmic, i2c:ina226@0x40,bus=1,shunt=0.1, model:IDLE_W,FULL_W, or "
    "mqtt://HOST[:PORT]/TOPIC[#JSON.PATH]"
)
FIRST_S = 15.0
"""The longest wait for a plug's first message."""

Listen = Callable[[str, str, Callable[[bytes], None]], Callable[[], None]]
"""Subscribes to a topic: takes the broker's URL, the topic and a receiver of payloads, and returns what ends the
subscription. Raises ValueError for text that is no broker's URL."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A meter, or none, and the reasons why the sources that were tried before it cannot be used."""

    meter: Meter | None
    reasons: tuple[str, ...]


def discover(root: Path = Path("/")) -> Found:
    """Open the best meter of this board: the nearer to the whole board, the better.

    In this order: current sensors (INA chips) and ACPI's power meter, the Raspberry Pi's power chip, industrial I/O,
    RAPL (processor and memory), then any other sensor of the kernel, such as a graphics card's; never a model.
    """
    reasons: list[str] = []
    for opening in (_open_board, _open_pmic, open_iio, RaplMeter, _open_other):
        try:
            return Found(meter=opening(root), reasons=tuple(reasons))
        except MeterAbsent as exc:  # noqa: PERF203 - five at most
            reasons.append(str(exc))
    return Found(meter=None, reasons=tuple(reasons))


def open_source(
    source: str, *, root: Path = Path("/"), listen: Listen | None = None, first_s: float = FIRST_S
) -> Found:
    """Open the meter that `source` names (see FORMS). Raises ValueError if it names none."""
    if source == "auto":
        return discover(root)
    if source == "none":
        return Found(meter=None, reasons=())
    kind, _, rest = source.partition(":")
    plain: dict[str, Callable[[Path], Meter]] = {"rapl": RaplMeter, "iio": open_iio, "pmic": _open_pmic}
    detailed: dict[str, Callable[[str, Path], Meter]] = {"model": _open_model, "i2c": open_i2c, "hwmon": _open_hwmon}
    try:
        if source in plain:
            meter = plain[source](root)
        elif kind in detailed and (rest or source == "hwmon"):
            meter = detailed[kind](rest, root)
        elif kind in {"mqtt", "mqtts"} and rest:
            meter = _open_plug(source, listen, first_s)
        else:
            raise ValueError(f"{source[:200]!r} is no source of energy figures: write {FORMS}")
        return Found(meter=meter, reasons=())
    except MeterAbsent as exc:
        return Found(meter=None, reasons=(str(exc),))


def _is_board(chip: Chip) -> bool:
    return chip.is_ina or chip.name in WHOLE


def _open_board(root: Path) -> Meter:
    chips = [chip for chip in find_chips(root) if _is_board(chip)]
    if not chips:
        raise MeterAbsent("hwmon: no INA chip and no power meter among the kernel's sensors (/sys/class/hwmon)")
    return _open_best(chips)


def _open_other(root: Path) -> Meter:
    chips = [chip for chip in find_chips(root) if not _is_board(chip)]
    if not chips:
        raise MeterAbsent("hwmon: no other sensor of the kernel measures power")
    return _open_best(chips)


def _open_hwmon(which: str, root: Path) -> Meter:
    """Open all of hwmon's chips, or the chip of this name or folder (`ina226`, `hwmon3`)."""
    chips = find_chips(root)
    if which:
        chosen = [chip for chip in chips if which in {chip.name, chip.folder.name, chip.folder.parent.name}]
        if not chosen:
            here = ", ".join(f"{chip.name} ({chip.folder.name})" for chip in chips) or "none"
            raise MeterAbsent(f"hwmon: no sensor {which} measures power here; there are: {here}")
        return _open_best(chosen)
    if not chips:
        raise MeterAbsent("hwmon: none of the kernel's sensors measures power (/sys/class/hwmon)")
    return _open_best(sorted(chips, key=lambda chip: not _is_board(chip)))


def _open_best(chips: list[Chip]) -> Meter:
    """Open a Jetson's chips together, as they share the board's rails; of others the first, as one may feed another."""
    for group in ("ina238", "ina3221", "ina3221x"):
        same = [chip for chip in chips if chip.name.split("-")[0] == group]
        if same:
            return open_chips(same, f"hwmon:{group}")
    return open_chips(chips[:1], f"hwmon:{chips[0].name}")


def _open_pmic(root: Path) -> Meter:
    try:
        return PmicMeter(open_firmware(root))
    except FirmwareSilent as exc:
        raise MeterAbsent(f"pmic: {exc}") from exc


def _open_model(text: str, root: Path) -> Meter:
    try:
        idle_w, full_w = (float(word) for word in text.split(","))
    except ValueError as exc:
        raise ValueError(f"model:{text} needs two numbers, as in model:2.7,6.4 (watts idle, watts busy)") from exc
    return ModelMeter(idle_w, full_w, root)


def _open_plug(source: str, listen: Listen | None, first_s: float) -> Meter:
    if listen is None:
        raise MeterAbsent("mqtt: there is no MQTT client here")
    parts = urlsplit(source)
    topic = parts.path.removeprefix("/")
    if not parts.netloc or not topic or any(sign in topic for sign in "+#\0") or parts.query:
        raise ValueError(f"{source[:200]!r} names no plug: write mqtt://HOST[:PORT]/TOPIC[#JSON.PATH]")
    meter = PlugMeter(topic, parts.fragment or None)
    meter.on_close = listen(f"{parts.scheme}://{parts.netloc}", topic, meter.on_message)
    if not meter.wait_for_watts(first_s):
        meter.close()
        raise MeterAbsent(f"mqtt: no watts came on {topic} within {first_s:g} s: check broker, topic and JSON path")
    return meter
