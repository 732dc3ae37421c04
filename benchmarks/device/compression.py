"""Small updates: the same federation with each scheme, its test loss and what its devices sent.

It trains the merged model alone: where affinities decide on groups, a scheme could change the groups, and the losses
would tell of that.
"""

import textwrap
from typing import Any

from benchmarks.device.federation import run
from benchmarks.measure import ROOT, WORK, XCEPTION, bundle, rooms
from edge_runtime.wire.compression import TOPK_FRACTION

SETTINGS: dict[str, object] = {
    "merged_rounds": 12,
    "groups": 1,
    "probe_rounds": 0,
    "lr": 0.05,
    "seed": 0,
}
VARIANTS: dict[str, dict[str, object]] = {
    "fp32": {},
    "int8": {"update_scheme": "int8"},
    f"topk, {100 * TOPK_FRACTION:g} %": {"update_scheme": "topk"},
    "fp16": {"update_scheme": "fp16"},
}
BUILDINGS = 4


def measure() -> dict[str, Any]:
    """Each variant on the rendered rooms: same seed, same data, same number of rounds."""
    data = sorted(folder for folder in rooms(BUILDINGS).iterdir() if folder.is_dir())
    folder, _ = bundle(f"{XCEPTION}:build")
    found: dict[str, Any] = {}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        outcome = run(WORK / f"compression-{number}", folder, data, SETTINGS | variant)
        report = outcome.report
        rounds = report["rounds"]
        found[name] = {
            "test_loss": report["test_loss"]["merged"],
            "wire_bytes_up": outcome.bytes_up,
            "wire_bytes_down": outcome.bytes_down,
            "file_ratio": sum(row["update_ratio"] for row in rounds) / len(rounds),
        }
        found[name]["wire_ratio_up"] = outcome.bytes_up / found["fp32"]["wire_bytes_up"]
        total = {variant: figures["test_loss"]["total"] for variant, figures in found.items()}
        found[name]["loss_against_fp32"] = total[name] / total["fp32"] - 1
        print(f"{name}: {found[name]}", flush=True)
    return {"devices": len(data), "bundle": str(folder.relative_to(ROOT)), "settings": SETTINGS, "schemes": found}


def document(result: dict[str, Any]) -> str:
    """The table."""
    settings = result["settings"]
    about = (
        f"{result['devices']} device processes train the merged model for {settings['merged_rounds']} rounds on the "
        "rendered rooms (five tasks, small Xception, width 0.25, 64 px), with seed "
        f"{settings['seed']}, and nothing but the scheme changed. *Sent* is all that went from the devices to the "
        "broker over TCP, counted by a proxy between them: the updates with their scales and indices, all other "
        "messages, MQTT's headers and topics. *File* is the update's file alone. Test loss is the sum of the task "
        "losses over all devices' test images."
    )
    lines = [
        "## Small updates: `python -m benchmarks.device compression`",
        "",
        textwrap.fill(about, 120),
        "",
        "| scheme | sent, KiB | of fp32 | file, of fp32 | test loss | against fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in result["schemes"].items():
        lines.append(
            f"| {name} | {figures['wire_bytes_up'] / 1024:,.0f} | {100 * figures['wire_ratio_up']:.2f} % "
            f"| {100 * figures['file_ratio']:.2f} % | {figures['test_loss']['total']:.4f} "
            f"| {100 * figures['loss_against_fp32']:+.2f} % |"
        )
    state = (
        "This model has no running statistics. They go in full by every scheme, so a model of which they are the "
        "share s of all elements is sent as int8 in about 0.25 + 0.75 · s of its size; weights to the devices are "
        "always fp32."
    )
    return "\n".join([*lines, "", textwrap.fill(state, 120)])
