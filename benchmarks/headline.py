"""The opening of docs/comparison.md: one picture and one table of the experiments in which groups matter.

    make compare                    # runs the experiments, goes on where it was stopped, and ends with
    python -m benchmarks.headline

Everything is read from benchmarks/results/pairs/comparison.json and .../air/comparison.json; what has no interval is of
one seed. The picture is benchmarks/results/headline.png.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from matplotlib.figure import Figure

from broker_server.comparison.comparison import Comparison, MethodResult
from broker_server.comparison.markdown import escape, table
from broker_server.grouping.statistics import Estimate
from edge_runtime.wire.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "comparison.md"
PICTURE = RESULTS / "headline.png"
BEGIN, END = "<!-- made by python -m benchmarks.headline -->\n", "<!-- end -->\n"
EXPERIMENTS = ("pairs", "air")
MOST_COMPUTE, MOST_ENERGY = 0.5, 0.6
"""Of one-by-one's: what our aim allows."""
SHOWN = {
    "one by one": "one by one",
    "all in one": "all in one",
    "{mas} random": "random groups",
    "{mas}": "MAS: affinities",
    "{mas} weighted": "affinities weighted by loss",
    "{mas} trials": "trials of all pairs",
    "{mas} hybrid": "trials of a shortlist",
    "every group": "trials of every group, to the end",
}
"""Methods by their names in the experiments, with what is said of them; {mas} has the number of groups."""


class Figures(msgspec.Struct, frozen=True):
    """The part of comparison.json that is read."""

    experiments: list[Comparison]


def read(name: str) -> Comparison:
    """Return an experiment's comparison."""
    return msgspec.json.decode((RESULTS / name / "comparison.json").read_bytes(), type=Figures).experiments[0]


def rows(found: Comparison) -> dict[str, list[MethodResult]]:
    """Return the results that are shown, by their words: of a method, or of all draws of random groups."""
    mas = "MAS-3" if any(each.method == "MAS-3 trials" for each in found.methods) else "MAS-2"
    shown: dict[str, list[MethodResult]] = {}
    for pattern, words in SHOWN.items():
        name = pattern.format(mas=mas)
        draws = pattern.endswith("random")
        these = [m for m in found.methods if m.seeds and (m.method.startswith(name) if draws else m.method == name)]
        if these:
            shown[words] = these
    return shown


def opening(results: Mapping[str, Comparison]) -> str:
    """The table, and a sentence or two on each experiment."""
    parts = []
    for name, found in results.items():
        seeds = max(len(each.seeds) for each in found.methods)
        head = ("", "Δ total test loss", "regret, %", "CPU time, ×", "modelled energy, ×")
        lines = [_line(words, these) for words, these in rows(found).items()]
        parts += [
            f"**{escape(found.title)}** (`make compare-{name}`, {seeds} {'seed' if seeds == 1 else 'seeds'}).",
            f"{escape(found.gate.sentence)} {_aim(found)}\n",
            table(head, lines) + "\n",
        ]
    return "\n".join(parts)


def _line(words: str, these: Sequence[MethodResult]) -> tuple[str, ...]:
    relative = [each.relative for each in these if each.relative is not None]
    return (
        words if len(these) == 1 else f"{words}, {len(these)} draws",
        _several([each.test_loss for each in relative], "+.3f"),
        _several([None if each.choice is None else each.choice.regret for each in these], ".1f", 100.0),
        _several([each.compute for each in relative], ".2f"),
        _several([each.simulated_energy for each in relative], ".2f"),
    )


def _several(values: Sequence[Estimate | None], form: str, scale: float = 1.0) -> str:
    known = [each for each in values if each is not None]
    if not known:
        return "–"
    if len(known) > 1:
        means = sorted({f"{scale * each.mean:{form}}".replace("-", "−") for each in known}, key=len)
        low, high = (f(scale * each.mean for each in known) for f in (min, max))
        return means[0] if len(means) == 1 else f"{low:{form}} to {high:{form}}".replace("-", "−")
    text = f"{scale * known[0].mean:{form}}".replace("-", "−")
    width = known[0].half_width
    return text if not width else f"{text} ± {scale * width:{form.lstrip('+')}}"


def _aim(found: Comparison) -> str:
    """Which method comes nearest to our aim: the least loss within the budget."""
    allowed = [
        each
        for each in found.methods
        if each.strategy == "mas"
        and (relative := each.relative) is not None
        and relative.test_loss is not None
        and relative.compute is not None
        and relative.simulated_energy is not None
        and relative.compute.mean <= MOST_COMPUTE
        and relative.simulated_energy.mean <= MOST_ENERGY
    ]
    budget = f"{MOST_COMPUTE:g}× the CPU time and {MOST_ENERGY:g}× the modelled energy of one-by-one"
    if not allowed:
        return f"No split stays within {budget}."
    best = min(allowed, key=_loss)
    assert best.relative is not None
    difference = _several([best.relative.test_loss], "+.3f")
    return f"Within {budget} the lowest loss is that of {escape(best.method)}: {difference} to one-by-one."


def _loss(method: MethodResult) -> float:
    assert method.relative is not None
    assert method.relative.test_loss is not None
    return method.relative.test_loss.mean


def picture(results: Mapping[str, Comparison]) -> bytes:
    """Loss beyond one-by-one's against CPU time, an experiment in each panel."""
    figure = Figure(figsize=(5.4 * len(results), 4.2), layout="constrained", dpi=110)
    for axes, found in zip(figure.subplots(1, len(results), squeeze=False)[0], results.values(), strict=True):
        for number, (words, these) in enumerate(rows(found).items()):
            for place, each in enumerate(these):
                relative = each.relative
                if relative is None or relative.test_loss is None or relative.compute is None:
                    continue
                axes.errorbar(
                    relative.compute.mean,
                    relative.test_loss.mean,
                    yerr=relative.test_loss.half_width,
                    fmt="o",
                    color=f"C{number}",
                    capsize=2.5,
                    label=words if place == 0 else None,
                )
        axes.axhline(0.0, color="#888888", linewidth=0.8)
        axes.axvline(MOST_COMPUTE, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_title(found.title, loc="left", fontsize=10)
        axes.set_xlabel("CPU time, × one-by-one's")
        axes.set_ylabel("total test loss − one-by-one's")
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def replaced(document: str, text: str) -> str:
    """The document with the text between its marks."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{text}{END}{after}"


def main() -> None:
    """Write picture and opening from what experiments have finished."""
    results = {name: read(name) for name in EXPERIMENTS if (RESULTS / name / "comparison.json").is_file()}
    write_atomic(PICTURE, picture(results))
    write_atomic(DOCUMENT, replaced(DOCUMENT.read_text(encoding="utf-8"), opening(results)).encode())
    print(DOCUMENT)


if __name__ == "__main__":
    main()
