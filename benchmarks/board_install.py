"""A board's installation: how many packages, how many megabytes of wheels, and whether our own wheel is complete.

    python benchmarks/board_install.py --wheels .venv-board/wheels

Exits with 1 where a limit is passed or a file of the source tree is not in the wheel.
"""

import argparse
import json
import sys
import zipfile
from pathlib import Path

# The last onnxruntime for Python 3.10 needs four packages that later ones do not; TOML and cryptography need one each.
MAX_PACKAGES = 12 if sys.version_info >= (3, 11) else 18
MAX_MB = 50.0
PACKAGES = ("edge_runtime", "broker_server", "export", "devices")
ROOT = Path(__file__).resolve().parent.parent


def sizes_mb(wheels: Path) -> dict[str, float]:
    """Megabytes (10^6 bytes) of each wheel, by its file's name."""
    return {path.name: path.stat().st_size / 1e6 for path in sorted(wheels.glob("*.whl"))}


def own_wheel(wheels: Path) -> Path:
    """This project's wheel. Exits with a sentence unless there is exactly one."""
    found = sorted(wheels.glob("mas_edge-*.whl"))
    if len(found) != 1:
        sys.exit(f"{wheels} has {len(found)} wheels of mas-edge instead of one: run make board")
    return found[0]


def differences(wheel: Path) -> list[str]:
    """Files of our packages that are in the source tree or in the wheel, but not in both."""
    tree = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.split("/")[0] in PACKAGES and not name.endswith("/")}
    return sorted(tree ^ packed)


def main() -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description="What a board installs, counted and weighed.")
    parser.add_argument("--wheels", type=Path, required=True, help="the folder that pip wrote the wheels to")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    odd = differences(own_wheel(arguments.wheels))
    sizes = sizes_mb(arguments.wheels)
    total_mb = sum(sizes.values())
    if arguments.json:
        print(json.dumps({"packages": len(sizes), "wheels_mb": round(total_mb, 2), "sizes_mb": sizes}))
    else:
        for name, size_mb in sorted(sizes.items(), key=lambda item: -item[1]):
            print(f"{size_mb:8.2f} MB  {name}")
        print(f"a board installs {len(sizes)} packages, {total_mb:.1f} MB of wheels, this one counted")
    for path in odd:
        print(f"{path} is in the source tree or in the wheel, but not in both", file=sys.stderr)
    over = len(sizes) > MAX_PACKAGES or total_mb > MAX_MB
    if over:
        print(f"that is more than {MAX_PACKAGES} packages or {MAX_MB} MB", file=sys.stderr)
    return 1 if odd or over else 0


if __name__ == "__main__":
    sys.exit(main())
