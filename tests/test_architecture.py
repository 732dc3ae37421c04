"""The rules of the house that import contracts cannot state: each third-party package's home, and what is never used.

Who may import whom is stated in pyproject.toml alone.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("edge_runtime", "broker_server", "export", "devices")

HOMES = {
    "torch": ("export",),
    "onnx": ("export",),
    "onnxruntime": (
        "edge_runtime.training.engine",
        "export.ort_training.artifacts",
    ),  # the latter: onnxruntime-training, as a process
    "paho": ("edge_runtime.wire.mqtt",),
    "jwt": ("edge_runtime.wire.tokens",),
    "PIL": ("edge_runtime.datasets", "broker_server"),
    "rich": ("edge_runtime", "broker_server", "export", "devices"),
    "matplotlib": ("broker_server", "edge_runtime.energy.recording.plots"),
    "prometheus_client": ("broker_server.operator.metrics",),
    "shtab": ("devices.cli.program",),
    "starlette": ("broker_server.operator.page",),
    "uvicorn": ("broker_server.operator.page",),
}
"""Where a third-party package may be imported."""

NEEDS_MORE = ("edge_runtime.wire.tokens", "edge_runtime.datasets.")
"""Modules that a board can do without: they may need jwt, Pillow or rich."""

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` counts as a.b if that is
    a module of ours."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import"
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                found.add(longer if longer in SOURCES else str(node.module))
    return found


def test_third_party_packages_are_imported_at_their_home_alone():
    strangers = [
        f"{module} imports {name}"
        for module, path in SOURCES.items()
        for name in imports_of(path)
        if (homes := HOMES.get(name.split(".")[0])) and not any(within(module, home) for home in homes)
    ]
    assert strangers == []


def test_public_class_names_stand_in_one_module_each():
    homes: dict[str, list[str]] = {}
    for module, path in SOURCES.items():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


MAX_UNITS, MAX_UNIT_IMPORTS = 12, 35


def test_the_servers_subjects_are_few_and_loosely_tied():
    def unit(module: str) -> str:
        return module.split(".")[1] if module.startswith("broker_server.") else ""

    ties = {(unit(module), unit(name)) for module, path in SOURCES.items() for name in imports_of(path)}
    ties = {(one, other) for one, other in ties if one and other and one != other}
    assert len({each for tie in ties for each in tie}) <= MAX_UNITS
    assert len(ties) <= MAX_UNIT_IMPORTS, sorted(ties)


def test_no_module_deserializes_objects():
    found = [
        f"{module} imports {name}"
        for module, path in SOURCES.items()
        for name in imports_of(path)
        if name.split(".")[0] in FORBIDDEN_MODULES
    ]
    assert found == []


def test_no_module_runs_what_arrives_as_data():
    found = [
        f"{module}:{node.lineno} {ast.unparse(node)}"
        for module, path in SOURCES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and _runs_data(node)
    ]
    assert found == []


def _runs_data(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name) and call.func.id in FORBIDDEN_CALLS:
        return True
    if any(each.arg in {"allow_pickle", "shell"} and not _is_false(each.value) for each in call.keywords):
        return True
    return ast.unparse(call.func) == "torch.load" and not any(each.arg == "weights_only" for each in call.keywords)


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


IMPORT_WITH_SOME_BLOCKED = """
import importlib, sys

blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Absent())
for module in modules:
    importlib.import_module(module)
assert not set(blocked) & {name.split(".")[0] for name in sys.modules}
"""


def import_without(blocked: tuple[str, ...], modules: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_WITH_SOME_BLOCKED, ",".join(blocked), ",".join(modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def of_a_board() -> list[str]:
    return [module for module in SOURCES if within(module, "edge_runtime") or within(module, "devices")]


@pytest.mark.process
def test_board_s_modules_import_without_torch_and_without_images():
    modules = [module for module in of_a_board() if not module.startswith(NEEDS_MORE)]
    import_without(("torch", "onnx", "jwt", "PIL", "rich", "matplotlib"), modules)


@pytest.mark.process
def test_board_s_other_modules_import_without_torch():
    pytest.importorskip("jwt")
    pytest.importorskip("PIL")
    pytest.importorskip("rich")
    import_without(("torch", "onnx", "matplotlib"), of_a_board())


@pytest.mark.process
def test_wire_imports_without_the_runtime():
    modules = [m for m in SOURCES if within(m, "edge_runtime.wire") and m != "edge_runtime.wire.tokens"]
    import_without(("torch", "onnx", "onnxruntime", "jwt"), modules)


ON_A_BOARD = ("devices.firmware", "devices.health", "devices.meters")
"""What the agent loads of devices."""


def test_boards_need_little_beside_the_standard_library():
    for module in (module for module in SOURCES if within(module, "devices")):
        names = {name.split(".")[0] for name in imports_of(SOURCES[module])}
        # msgspec is the runtime's own, so a board has it in any case: a meter's facts are what the journal records.
        more = {"msgspec"} if any(within(module, part) for part in ON_A_BOARD) else {"msgspec", "packaging", "rich"}
        more |= {"shtab"} if module == "devices.cli.program" else set()  # by the one flag that prints a completion
        assert names <= {"devices", *sys.stdlib_module_names, *more}, module


def test_source_files_are_found():
    assert {"edge_runtime.wire", "edge_runtime.wire.messages", "devices"} <= SOURCES.keys()
