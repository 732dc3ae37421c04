"""The documents: links lead somewhere, named files exist, tables are whole, long documents have contents."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_WORDS_WITHOUT_CONTENTS = 1500


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    return listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]


FILES = tracked()
DOCUMENTS = [ROOT / name for name in FILES if name.endswith(".md") and not name.startswith("benchmarks/results")]
PARTS = {part for name in FILES for part in Path(name).parts}
HISTORY = {ROOT / "CHANGELOG.md"}
"""Says what things were called when it was written."""


def anchors(text):
    """The anchors of a document's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def links(text):
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [target.strip("<>") for target in re.findall(r"\]\(([^)\s]+)\)", prose)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path):
    lost = []
    for target in links(path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        known = file.exists() and (not anchor or anchor in anchors(file.read_text(encoding="utf-8")))
        if not known:
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if p not in HISTORY], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_of_ours_that_are_named_exist(path):
    named = set(
        re.findall(
            r"`((?:[\w-]+/)+[\w.-]*\.(?:py|toml|sh|service)|(?:[\w-]+/)*[\w-]+\.py)\b", path.read_text(encoding="utf-8")
        )
    )
    ours = {name for name in named if name.split("/")[0] in PARTS and "NAME" not in name}
    lost = [name for name in sorted(ours) if not any(file == name or file.endswith(f"/{name}") for file in FILES)]
    assert lost == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_have_a_head_and_rows_of_its_width(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.sub(r"\\\||`[^`]*`", "", row).strip() for row in table.strip().split("\n")]
        assert re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", rows[1] if len(rows) > 1 else ""), f"no head: {rows[0]}"
        widths = {row.count("|") for row in rows}
        assert len(widths) == 1, f"rows of different widths: {rows[0]}"


@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if p not in HISTORY], ids=lambda path: str(path.relative_to(ROOT))
)
def test_long_documents_have_contents(path):
    text = path.read_text(encoding="utf-8")
    inside = [target for target in links(text) if target.startswith("#")]
    assert len(text.split()) <= MAX_WORDS_WITHOUT_CONTENTS or len(inside) >= 3
