"""Build the documents as a site: `make site` writes build/site, and warns of nothing or fails.

The documents link to one another as files of the repository, so they are laid out as they lie there, with the files
that they link to, and mkdocs makes pages of them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGE, SITE = ROOT / "build" / "documents", ROOT / "build" / "site"
CONFIG = Path(__file__).with_name("mkdocs.yml")
OUTER = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def linked(document: Path) -> set[Path]:
    """Return the files of the repository that a document links to."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.strip("<>").partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    files = {(document.parent / target).resolve() for target in targets if target and "://" not in target}
    return {path for path in files if path.is_file() and path.is_relative_to(ROOT)}


def lay_out() -> None:
    """Copy the documents, and all that they link to, to STAGE."""
    shutil.rmtree(STAGE, ignore_errors=True)
    todo = [ROOT / name for name in OUTER] + sorted((ROOT / "docs").glob("**/*.md"))
    done: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        target = STAGE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if path.suffix == ".md":
            todo += sorted(linked(path))


def main() -> int:
    """Build; the exit code is mkdocs'."""
    lay_out()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIG)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    else:
        print(f"{SITE.relative_to(ROOT)}/README.html: {sum(1 for _ in SITE.rglob('*.html'))} pages")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
