"""A comparison as Markdown: tables of figures, of groups, and of the published figures beside ours."""

# coverage: every branch

import re
from collections.abc import Iterable, Sequence

from broker_server.comparison.choices import ChoiceResult
from broker_server.comparison.comparison import REFERENCE as ONE_BY_ONE
from broker_server.comparison.comparison import Comparison, MethodResult
from broker_server.comparison.published import FIGURES, REFERENCE
from broker_server.grouping.statistics import Estimate
from broker_server.simulation.summary import TOTAL
from edge_runtime.wire.metrics import METRICS, headed

NOTHING = "–"
FINDS_GROUPS = {"mas", "tag", "hoa", "tree", "exhaustive"}
"""The strategies whose groups are not known beforehand."""
LEGEND = (
    "Means over seeds ± half of the 95 % interval (Student's t; one seed has none). **Bold**: the lowest mean of the "
    "total test loss among the methods with the most seeds. Δ and × are to {reference}, paired by seed. "
    "**Measured**: CPU seconds of one core of the simulating machine in training, over all devices, and of the slowest "
    "device of each round. **Simulated**: time and joules by the stated rules of the experiment's boards, estimates "
    "without a meter."
)

CHOICES = (
    "How groups were chosen: beside all divisions into as many groups that went on from the same merged weights in the "
    "same experiment. Rank and regret are by total test loss, ranks seed by seed; regret is the loss beyond the best "
    "known division's. A correlation is given where the choice was by a score."
)


def document(comparisons: Sequence[tuple[Comparison, str]]) -> str:
    """Return a document of several comparisons, each with the address of its picture."""
    parts = [f"## {escape(each.title)}\n\n{tables(each, picture)}" for each, picture in comparisons]
    return "# Methods side by side\n\n" + "\n".join(parts)


def tables(comparison: Comparison, picture: str) -> str:
    """One comparison without its heading."""
    reference = NOTHING if comparison.reference is None else escape(comparison.reference)
    parts = [
        f"![Total test loss against training time and energy](<{picture}>)\n",
        f"**{escape(comparison.gate.sentence)}**\n",
        LEGEND.format(reference=reference),
    ]
    for section in comparison.sections:
        methods = [each for each in comparison.methods if each.section == section]
        parts.append(f"\n**{escape(section)}**\n" if section else "")
        parts += [_figures(methods), "", _losses(comparison, methods)]
        if differences := _differences(comparison, methods):
            parts += ["", differences]
        if any(each.test_metric for each in methods):
            parts += ["", _metrics(comparison, methods)]
        if spread := [each for each in methods if each.worst]:
            parts += ["", _spread(comparison, spread)]
        if found := [each for each in methods if each.strategy in FINDS_GROUPS and each.groups]:
            parts += ["", _groups(found)]
        if chosen := [(each, each.choice) for each in methods if each.choice is not None]:
            parts += ["", _choices(chosen), "", CHOICES]
    if any(each.published is not None for each in comparison.methods):
        parts += ["", _published(comparison.methods)]
    if comparison.missing:
        parts += ["", f"Not finished, and left out: {escape(', '.join(comparison.missing))}."]
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Free text as Markdown that shows it as it is, on one line."""
    line = re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+", " ", text)
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", line)


def _figures(methods: Iterable[MethodResult]) -> str:
    head = (
        *(
            "method",
            "seeds",
            "total test loss",
            "Δ loss",
            "CPU s (measured)",
            "×",
            "critical path, CPU s (measured)",
            "×",
        ),
        *("time, s (simulated)", "×", "energy, kJ (simulated)", "×"),
    )
    rows = []
    for each in methods:
        loss = _loss(each.test_loss.get(TOTAL))
        relative = each.relative
        rows.append(
            (
                escape(each.method),
                str(len(each.seeds)),
                f"**{loss}**" if each.best else loss,
                NOTHING if relative is None else _loss(relative.test_loss, sign=True),
                _amount(each.compute_s),
                NOTHING if relative is None else _ratio(relative.compute),
                _amount(each.critical_path_s),
                NOTHING if relative is None else _ratio(relative.critical_path),
                _amount(each.simulated_s),
                NOTHING if relative is None else _ratio(relative.simulated_time),
                _amount(each.simulated_j, 1e3),
                NOTHING if relative is None else _ratio(relative.simulated_energy),
            )
        )
    return table(head, rows)


def _losses(comparison: Comparison, methods: Iterable[MethodResult]) -> str:
    head = ("method: test loss by task", *map(escape, comparison.tasks), "rounds", "MB up", "MB down")
    rows = [
        (
            escape(each.method),
            *(_loss(each.test_loss.get(task)) for task in comparison.tasks),
            _amount(each.rounds),
            _amount(each.bytes_up, 1e6),
            _amount(each.bytes_down, 1e6),
        )
        for each in methods
    ]
    return table(head, rows)


def _differences(comparison: Comparison, methods: Iterable[MethodResult]) -> str:
    """Where a method was named to relate to, each task's loss beside its; else nothing."""
    named = next((each for each in comparison.methods if each.method == comparison.reference), None)
    others = [each for each in methods if each is not named and each.relative is not None and each.relative.task_loss]
    if named is None or named.strategy == ONE_BY_ONE or not others:
        return ""
    head = (f"method: Δ loss to {escape(named.method)}", *map(escape, comparison.tasks), "tasks no worse")
    rows = []
    for each in others:
        found = {} if each.relative is None else each.relative.task_loss
        good = sum(difference.mean <= 0 for difference in found.values())
        cells = (_loss(found.get(task), sign=True) for task in comparison.tasks)
        rows.append((escape(each.method), *cells, f"{good} of {len(found)}"))
    return table(head, rows)


def _metrics(comparison: Comparison, methods: Iterable[MethodResult]) -> str:
    head = ("method: test metric by task", *(f"{escape(t)}, {headed(name)}" for t, name in comparison.metrics.items()))
    rows = []
    for each in methods:
        values = {
            task: _written(each.test_metric.get(task), f".{METRICS[name].decimals}f", 1.0)
            for task, name in comparison.metrics.items()
        }
        cells = [f"**{value}**" if task in each.best_metrics else value for task, value in values.items()]
        rows.append((escape(each.method), *cells))
    note = "Test metrics, means over devices weighted by examples; **bold** is the best of its task."
    return f"{table(head, rows)}\n\n{note}"


def _spread(comparison: Comparison, methods: Iterable[MethodResult]) -> str:
    head = ("method: worst device / bottom decile by task", *map(escape, comparison.tasks))
    rows = [
        (
            escape(each.method),
            *(f"{_loss(each.worst.get(task))} / {_loss(each.bottom_decile.get(task))}" for task in comparison.tasks),
        )
        for each in methods
    ]
    note = "On test data, a task's metric, or its loss where it has none; every device counts once."
    return f"{table(head, rows)}\n\n{note}"


def _groups(methods: Iterable[MethodResult]) -> str:
    rows = []
    for each in methods:
        seeds_of: dict[str, list[str]] = {}
        for seed, groups in each.groups.items():
            seeds_of.setdefault(" / ".join(" + ".join(group) for group in groups), []).append(str(seed))
        rows += [(escape(each.method), ", ".join(seeds), escape(groups)) for groups, seeds in seeds_of.items()]
    return table(("method", "seeds", "groups of the last phase"), rows)


def _choices(chosen: Iterable[tuple[MethodResult, ChoiceResult]]) -> str:
    head = ("method: choice of groups", "groups", "divisions known", "rank", "regret, %", "a random division's, %")
    rows = [
        (
            escape(method.method),
            _range([len(method.groups[seed]) for seed in found.by_seed]),
            _range([quality.known for quality in found.by_seed.values()]),
            ", ".join(str(quality.rank) for quality in found.by_seed.values()),
            _percent(found.regret),
            _percent(found.random_regret),
            _percent(found.gain, "+.0f"),
            _written(found.correlation, "+.2f", 1.0),
        )
        for method, found in chosen
    ]
    return table((*head, "share of the gain from random to best, %", "correlation of score and quality"), rows)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


def _percent(value: Estimate | None, form: str = ".2f") -> str:
    return _written(value, form, 0.01)


def _published(methods: Iterable[MethodResult]) -> str:
    head = ("method", "total test loss", "loss, published", "× CPU time (measured)", "× GPU hours, published")
    hours = FIGURES[REFERENCE].gpu_h
    rows = [
        (
            escape(each.method),
            _loss(each.test_loss.get(TOTAL)),
            f"{each.published.test_loss:.3f}",
            NOTHING if each.relative is None else _ratio(each.relative.compute),
            f"{each.published.gpu_h / hours:.2f} ({each.published.gpu_h:g} h)",
        )
        for each in methods
        if each.published is not None
    ]
    note = (
        "Beside the published figures (Zhuang et al., ICCV 2023, arXiv 2307.11285, five tasks on Taskonomy, 32 "
        "clients, 100 rounds; read off the figure, ±0.001 loss, ±0.05 h). Losses are of other data and not comparable "
        "as numbers: the order of the methods and the ratios are."
    )
    return f"{note}\n\n{table(head, rows)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _loss(value: Estimate | None, *, sign: bool = False) -> str:
    return _written(value, f"{'+' if sign else ''}.4f", 1.0)


def _ratio(value: Estimate | None) -> str:
    return _written(value, ".2f", 1.0)


def _amount(value: Estimate | None, unit: float = 1.0) -> str:
    """In parts of `unit`, with a decimal where the number is small."""
    return _written(value, ".1f" if value is not None and value.mean < 100 * unit else ".0f", unit)


def _written(value: Estimate | None, form: str, unit: float) -> str:
    if value is None:
        return NOTHING
    mean = format(value.mean / unit, form).replace("-", "−")
    return mean if not value.half_width else f"{mean} ± {format(value.half_width / unit, form.lstrip('+'))}"
