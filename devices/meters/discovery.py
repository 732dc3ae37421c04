"""Opening a meter: by the name of its source, or the best one of this board."""

# coverage: every branch

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from devices.detection import detect
from devices.firmware import FirmwareSilent, open_firmware
from devices.meters.hwmon import WHOLE, Chip, doubt, find_chips, open_chips
from devices.meters.i2c import open_i2c
from devices.meters.iio import open_iio
from devices.meters.meter import Meter, MeterAbsent
from devices.meters.model import ModelMeter
from devices.meters.plausibility import PowerRange, power_doubt, power_range
from devices.meters.plug import RARE_S, PlugMeter
from devices.meters.pmic import PmicMeter
from devices.meters.rapl import RaplMeter
from devices.profile import Profile, load, load_all

FORMS = (
    "auto, none, rapl, hwmon, hwmon:CHIP, iio, pmic, i2c:ina226@0x40,bus=1,shunt=0.1, "
    "model:IDLE_W,FULL_W[,process], or mqtt://HOST[:PORT]/TOPIC[?every=SECONDS][#JSON.PATH]"
)
FIRST_S = 15.0
"""The longest wait for a plug's first message."""
_OF_PROCESS = ",process"
_SHUNT = re.compile(r"(?:hwmon|i2c):ina2(?:19|26|30|31|xx)")
"""Chips beside a shunt whose resistance somebody has stated."""
_EVERY = re.compile(r"(?:every=([1-9]\d{0,3}))?")

Listen = Callable[[str, str, Callable[[bytes], None]], Callable[[], None]]
"""Subscribes to a topic: takes the broker's URL, the topic and a receiver of payloads, and returns what ends the
subscription. Raises ValueError for text that is no broker's URL."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A meter, or none, and the reasons why the sources that were tried before it cannot be used.

    `others` are sensors of the kernel that measure power too, and were not taken.
    """

    meter: Meter | None
    reasons: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Place:
    """The board that a meter is on: where its files are, the power that it can take, and whether it is fed with 5 V."""

    root: Path
    power: PowerRange | None
    is_fed_5v: bool


def discover(root: Path = Path("/"), board: str | None = None) -> Found:
    """Open the best meter of this board, or of the `board` of that name. Raises ProfileInvalid.

    First what the board's profile names, the best first; a sensor on I2C only where the board was named, because nobody
    can see the resistance of its shunt. Then by nearness to the whole board: current sensors (INA chips) and ACPI's
    power meter, the Raspberry Pi's power chip, industrial I/O, RAPL (processor and memory). Never a model, nor a sensor
    of a part such as a graphics card. A meter whose first reading cannot be the board's is passed over.
    """
    profile = detect(load_all(), root).profile if board is None else load(board)
    place = _place(profile, root)
    named = () if profile is None or profile.family == "generic" else profile.facts.meters.value
    names = [name for name in named if board is not None or not name.startswith("i2c:")]
    meter, reasons = _first(partial(_open_named, name, place) for name in (*names, "board", "pmic", "iio", "rapl"))
    return Found(meter=meter, reasons=reasons, others=_others(root, meter))


def open_source(
    source: str, *, root: Path = Path("/"), listen: Listen | None = None, first_s: float = FIRST_S
) -> Found:
    """Open the meter that `source` names (see FORMS). Raises ValueError if it names none."""
    if source == "auto":
        return discover(root)
    if source == "none":
        return Found(meter=None, reasons=())
    kind, _, rest = source.partition(":")
    try:
        if kind in {"mqtt", "mqtts"} and rest:
            return Found(meter=_open_plug(source, listen, first_s), reasons=())
        if kind == "model" and rest:
            return Found(meter=_open_model(rest, root), reasons=())
        if source in {"rapl", "iio", "pmic", "hwmon"} or (kind in {"hwmon", "i2c"} and rest):
            return Found(meter=_open_named(source, _place(detect(load_all(), root).profile, root)), reasons=())
    except MeterAbsent as exc:
        return Found(meter=None, reasons=(str(exc),))
    raise ValueError(f"{source[:200]!r} is no source of energy figures: write {FORMS}")


def _place(profile: Profile | None, root: Path) -> _Place:
    is_fed_5v = profile is not None and profile.family == "raspberrypi"
    return _Place(root=root, power=power_range(profile), is_fed_5v=is_fed_5v)


def _open_named(name: str, place: _Place) -> Meter:
    """Open a source of this board, and hold its first reading against what the board can take. Raises MeterAbsent."""
    kind, _, rest = name.partition(":")
    if kind == "rapl":
        return RaplMeter(place.root)
    if kind == "board":
        return _open_board(place)
    if kind == "hwmon":
        return _open_hwmon(rest, place)
    if kind == "iio":
        return _checked(open_iio(place.root), place)
    return _checked(_open_pmic(place.root) if kind == "pmic" else open_i2c(rest, place.root), place)


def _checked(meter: Meter, place: _Place) -> Meter:
    """Return the meter, or close it and raise MeterAbsent if its reading cannot be the board's power."""
    values, has_shunt = meter.read(), _SHUNT.fullmatch(meter.facts.source) is not None
    reason = "it gives no number now" if values is None else power_doubt(values[0], place.power, has_shunt=has_shunt)
    if reason is None:
        return meter
    meter.close()
    raise MeterAbsent(f"{meter.facts.source}: {reason}")


def _first(openings: Iterable[Callable[[], Meter]]) -> tuple[Meter | None, tuple[str, ...]]:
    """Return the first meter that can be opened, and the reasons, each once, why those before it cannot."""
    reasons: dict[str, None] = {}
    for opening in openings:
        try:
            return opening(), tuple(reasons)
        except MeterAbsent as exc:  # noqa: PERF203 - a few at most
            reasons[str(exc)] = None
    return None, tuple(reasons)


def _others(root: Path, taken: Meter | None) -> tuple[str, ...]:
    sources = dict.fromkeys(f"hwmon:{chip.name}" for chip in find_chips(root))
    return tuple(source for source in sources if taken is None or source != taken.facts.source)


def _is_board(chip: Chip) -> bool:
    return chip.is_ina or chip.name in WHOLE


def _open_board(place: _Place) -> Meter:
    chips = [chip for chip in find_chips(place.root) if _is_board(chip)]
    if not chips:
        raise MeterAbsent("hwmon: no INA chip and no power meter among the kernel's sensors (/sys/class/hwmon)")
    return _open_best(chips, place)


def _open_hwmon(which: str, place: _Place) -> Meter:
    """Open all of hwmon's chips, or the chip of this name or folder (`ina226`, `hwmon3`)."""
    chips = find_chips(place.root)
    if which:
        chosen = [chip for chip in chips if which in {chip.name, chip.folder.name, chip.folder.parent.name}]
        if not chosen:
            here = ", ".join(f"{chip.name} ({chip.folder.name})" for chip in chips) or "none"
            raise MeterAbsent(f"hwmon: no sensor {which} measures power here; there are: {here}")
        return _open_best(chosen, place)
    if not chips:
        raise MeterAbsent("hwmon: none of the kernel's sensors measures power (/sys/class/hwmon)")
    return _open_best(sorted(chips, key=lambda chip: not _is_board(chip)), place)


def _open_best(chips: list[Chip], place: _Place) -> Meter:
    """Open a Jetson's chips together, as they share the board's rails; of others the first that can be in its feed."""
    for group in ("ina238", "ina3221", "ina3221x"):
        same = [chip for chip in chips if chip.name.split("-")[0] == group]
        if same:
            return _checked(open_chips(same, f"hwmon:{group}"), place)
    meter, reasons = _first(partial(_open_chip, chip, place) for chip in chips)
    if meter is None:
        raise MeterAbsent("; ".join(reasons))
    return meter


def _open_chip(chip: Chip, place: _Place) -> Meter:
    """Open a chip; one that can measure a board is held against what the board can take."""
    source = f"hwmon:{chip.name}"
    if (reason := doubt(chip, is_fed_5v=place.is_fed_5v)) is not None:
        raise MeterAbsent(f"{source}: {reason} ({chip.folder.name})")
    meter = open_chips([chip], source)
    return _checked(meter, place) if _is_board(chip) else meter


def _open_pmic(root: Path) -> Meter:
    try:
        return PmicMeter(open_firmware(root))
    except FirmwareSilent as exc:
        raise MeterAbsent(f"pmic: {exc}") from exc


def _open_model(text: str, root: Path) -> Meter:
    numbers, of_process = text.removesuffix(_OF_PROCESS), text.endswith(_OF_PROCESS)
    try:
        idle_w, full_w = (float(word) for word in numbers.split(","))
    except ValueError as exc:
        raise ValueError(f"model:{text} needs two numbers, as in model:2.7,6.4 (watts idle, watts busy)") from exc
    return ModelMeter(idle_w, full_w, root, of_process=of_process)


def _open_plug(source: str, listen: Listen | None, first_s: float) -> Meter:
    if listen is None:
        raise MeterAbsent("mqtt: there is no MQTT client here")
    parts = urlsplit(source)
    topic, every = parts.path.removeprefix("/"), _EVERY.fullmatch(parts.query)
    if not parts.netloc or not topic or any(sign in topic for sign in "+#\0") or every is None:
        raise ValueError(f"{source[:200]!r} names no plug: write mqtt://HOST[:PORT]/TOPIC[?every=SECONDS][#JSON.PATH]")
    every_s = float(every[1] or RARE_S)
    meter = PlugMeter(topic, parts.fragment or None, every_s=every_s)
    meter.on_close = listen(f"{parts.scheme}://{parts.netloc}", topic, meter.on_message)
    if every_s <= RARE_S and not meter.wait_for_watts(first_s):
        meter.close()
        raise MeterAbsent(
            f"mqtt: no watts came on {topic} within {first_s:g} s: check broker, topic and JSON path; if the plug "
            "publishes more rarely, say how often: ?every=300"
        )
    return meter
