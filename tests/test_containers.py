"""Dockerfile and compose.yaml, as far as they can be held to anything where no container engine runs.

RUN lines are commands of `make`, commands and options exist, and hadolint's rules that matter here are kept by hand.
"""

import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()
EXTRAS = ("server,datasets", "board,datasets,export", "board")


def instructions():
    """(instruction, its text on one line) in order; comments and continued lines undone."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def of(name):
    return [text for instruction, text in instructions() if instruction == name]


def arrays():
    """Every command in exec form: of CMD and ENTRYPOINT, HEALTHCHECK, and the services."""
    found = of("CMD") + [text.partition("CMD ")[2] for text in of("HEALTHCHECK")]
    found += re.findall(r"^    command: (\[.*\])$", COMPOSE, re.MULTILINE)
    return [json.loads(text) for text in found]


def modules():
    """The commands of ours among them: the module and its words."""
    return [(words[1], words[2:]) for words in arrays() if words[0] == "-m"]


def test_commands_are_found():
    assert {module for module, _ in modules()} == {"export", "edge_runtime", "broker_server"}
    assert len(modules()) == 3 + 8


@pytest.mark.process
def test_run_lines_are_commands_of_make():
    """Those that install; the other makes the user that the containers run as."""
    expected = {"useradd --system --uid 10001 --create-home --home-dir /data mas-edge"}
    for extras in EXTRAS:
        done = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", "install", f"EXTRAS={extras}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        expected.add(" && ".join(done.stdout.splitlines()))
    assert set(of("RUN")) == expected


def test_extras_are_those_of_the_project():
    text = (ROOT / "pyproject.toml").read_text()
    for extras in EXTRAS:
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", text, re.MULTILINE), extra


@pytest.mark.parametrize(("module", "words"), modules(), ids=lambda value: " ".join(value) if value else "")
@pytest.mark.process
@pytest.mark.workstation
def test_commands_and_options_exist(module, words):
    pytest.importorskip("torch")
    pytest.importorskip("jwt")
    words = [word for word in words if word.startswith("-") or re.fullmatch("[a-z]+", word)]
    path = []
    for word in words:
        if word.startswith("-"):
            break
        path.append(word)
    assert {word for word in words if word.startswith("-")} <= options_of(module, tuple(path))


@cache
def options_of(module, path):
    """What a command's help lists; the server's own lists every setting when asked for all."""
    help_flag = "--help-all" if (module, path) == ("broker_server", ()) else "--help"
    done = subprocess.run(
        [sys.executable, "-m", module, *path, help_flag], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", done.stdout))


def test_copied_paths_exist_and_are_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for text in of("COPY"):
        words = [word for word in text.split() if not word.startswith("--from=")]
        if "--from=" in text:
            assert re.search(r"--from=(\S+)", text)[1] in {name.split(" AS ")[1] for name in of("FROM")}
            continue
        for word in words[:-1]:
            assert (ROOT / word).exists(), word
            assert f"!{word}" in ignored, word


def test_stages_build_on_stages_that_come_before():
    seen = set()
    for text in of("FROM"):
        base, _, name = text.partition(" AS ")
        assert base in seen or re.fullmatch(r"python:\$\{PYTHON\}-slim-bookworm", base), base
        seen.add(name)
    assert {"server", "export", "board"} <= seen


def test_hadolint_rules_by_hand():
    """DL3000 absolute WORKDIR, DL3002 no root, DL3007 no latest, DL3020 no ADD, DL3025 exec form, DL3042 no cache,
    DL4000 no MAINTAINER, DL4003 and DL4004 one CMD and ENTRYPOINT a stage, DL4006 no pipes, DL3059 no runs of RUN."""
    names = [name for name, _ in instructions()]
    assert not {"ADD", "MAINTAINER"} & set(names)
    assert all(text.startswith("/") for text in of("WORKDIR"))
    assert of("USER") == ["10001"]
    assert all(":" in text and ":latest" not in text for text in of("FROM") if "python" in text)
    assert "|" not in "".join(of("RUN")).replace("||", "")
    assert all("--no-cache-dir" in text for text in of("RUN") if "pip install" in text)
    assert all(text.startswith("[") for text in of("CMD") + of("ENTRYPOINT") + of("VOLUME"))
    assert ("RUN", "RUN") not in set(pairwise(names))
    stage = []
    for name in [*names, "FROM"]:
        if name == "FROM":
            assert all(stage.count(once) <= 1 for once in ("CMD", "ENTRYPOINT", "HEALTHCHECK"))
            stage = []
        stage.append(name)


def test_every_target_that_serves_has_a_health_check():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    for target in ("server", "board"):
        text = next(stage for stage in stages if f" AS {target}\n" in stage)
        assert "HEALTHCHECK" in text, target


@pytest.mark.process
@pytest.mark.parametrize(("age_s", "code"), [(0, 0), (100, 0), (200, 1), (None, 1)])
def test_board_s_health_is_the_agent_s_own_sign_of_life(tmp_path, age_s, code):
    stage = next(stage for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE) if " AS board\n" in stage)
    (check,) = re.findall(r"HEALTHCHECK .*\\\n\s*CMD (\[.*\])", stage)
    alive = tmp_path / "alive"
    if age_s is not None:
        alive.touch()
        os.utime(alive, (time.time() - age_s,) * 2)
    _, *words = json.loads(check)
    done = subprocess.run(
        [sys.executable, *words], env={"MAS_EDGE_ALIVE": str(alive)}, capture_output=True, check=False
    )
    assert done.returncode == code


def test_compose_services_have_images_and_targets_that_exist():
    targets = {text.split(" AS ")[1] for text in of("FROM")}
    assert set(re.findall(r'target: "(\w+)"', COMPOSE)) == {"server", "export", "board"} <= targets
    services = COMPOSE.partition("\nservices:\n")[2].partition("\nvolumes:\n")[0]
    names = set(re.findall(r"^  ([a-z0-9-]+):$", services, re.MULTILINE))
    assert {"server", "enrol-1", "enrol-2", "board-1", "board-2"} <= names
    needed = set(re.findall(r"([a-z0-9-]+): \{ condition:", services))
    assert needed <= names
    for path in re.findall(r'"\./(\S+?):', COMPOSE):
        assert (ROOT / path).is_file(), path


def test_compose_has_tls_and_tokens_as_between_machines():
    commands = re.findall(r"^    command: (\[.*\])$", COMPOSE, re.MULTILINE)
    enrolled = [json.loads(text) for text in commands if "enrol" in text]
    assert [words[words.index("--url") + 1] for words in enrolled] == ["mqtts://server:8883"] * 2
    assert not [text for text in commands if "insecure" in text or "mqtt://" in text]
