"""`make bench-device`: what the device runtime claims, measured. `python -m benchmarks.device [SECTION …]`.

Each section is a module with `measure`, which gives figures that become benchmarks/results/device-<section>.json, and
`document`, which makes of such figures its part of docs/device.md. The page is made of the sections' files, so
running one section leaves the others as they were measured.
"""

import argparse
import json
from typing import Any, Protocol

from benchmarks.device import budget, compression, energy, probes, recovery
from benchmarks.measure import RESULTS, ROOT, write

PAGE = ROOT / "docs" / "device.md"
HEAD = """# The device runtime, measured

Made by `make bench-device` (one section: `python -m benchmarks.device SECTION`); the JSON files with machine and
versions are `benchmarks/results/device-*.json`.
"""


class Section(Protocol):
    """A module of this package."""

    def measure(self) -> dict[str, Any]:
        """The figures."""
        ...

    def document(self, result: dict[str, Any]) -> str:
        """The page's part about them: Markdown with a heading of the second level."""
        ...


SECTIONS: dict[str, Section] = {
    "budget": budget,
    "compression": compression,
    "energy": energy,
    "probes": probes,
    "recovery": recovery,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("section", nargs="*", choices=[*SECTIONS, []], help="default: all of them")
    parser.add_argument("--page", action="store_true", help="measure nothing, make the page of what was measured")
    args = parser.parse_args()
    for name in [] if args.page else args.section or SECTIONS:
        print(f"== {name}", flush=True)
        result = SECTIONS[name].measure()
        print(json.dumps(result, indent=1))
        write(f"device-{name}", f"python -m benchmarks.device {name}", result)
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = RESULTS / f"device-{name}.json"
        if path.is_file():
            parts.append(section.document(json.loads(path.read_text())))
    PAGE.write_text("\n".join(part.strip("\n") + "\n" for part in parts))
    print(f"{PAGE.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
