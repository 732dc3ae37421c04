"""The house's rules: who may import whom, which third-party package lives where, and what is never used.

The contracts between our own packages are also import-linter's, in pyproject.toml, where chains of imports count.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("edge_runtime", "broker_server", "export", "devices")

MAY_IMPORT = {
    "edge_runtime.wire": ("edge_runtime.wire",),
    "edge_runtime": ("edge_runtime",),
    "edge_runtime.__main__": ("edge_runtime", "devices"),  # hands the board's meters to the runtime
    "broker_server": ("broker_server", "edge_runtime.wire"),
    "broker_server.__main__": ("broker_server", "edge_runtime.wire", "edge_runtime.simulation"),  # simulated devices
    "export": ("export", "edge_runtime.wire"),
    "export.__main__": ("export", "edge_runtime"),  # holds what it compiled to the engine that will run it
    "devices": ("devices",),
    "devices.__main__": ("devices", "edge_runtime", "broker_server"),  # the runtime's account, a server's enrolment
}
"""What of ours a package may import; the longest name that fits is the rule. Composition is in `__main__` modules."""

HOMES = {
    "torch": ("export",),
    "onnx": ("export",),
    "onnxruntime": ("edge_runtime.engine", "export.artifacts"),  # the latter: onnxruntime-training, as a process
    "paho": ("edge_runtime.wire.mqtt",),
    "jwt": ("edge_runtime.wire.tokens",),
    "PIL": ("edge_runtime.datasets", "broker_server"),
    "rich": ("edge_runtime", "broker_server", "export", "devices"),
    "matplotlib": ("broker_server", "devices"),
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


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_of_ours_what_its_package_may(module):
    rule = max((package for package in MAY_IMPORT if within(module, package)), key=len)
    for name in imports_of(SOURCES[module]):
        if name.split(".")[0] in OURS:
            allowed = name == "edge_runtime" or any(within(name, package) for package in MAY_IMPORT[rule])
            assert allowed, f"{module} imports {name}"


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_third_party_packages_at_their_home_alone(module):
    for name in imports_of(SOURCES[module]):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or any(within(module, home) for home in homes), f"{module} imports {name}"


@pytest.mark.parametrize("module", SOURCES)
def test_module_runs_nothing_that_arrives_as_data(module):
    path = SOURCES[module]
    for name in imports_of(path):
        assert name.split(".")[0] not in FORBIDDEN_MODULES, f"{module} imports {name}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            where = f"{module}:{node.lineno}"
            if isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, f"{where} calls {node.func.id}"
            for keyword in node.keywords:
                assert keyword.arg not in {"allow_pickle", "shell"} or _is_false(keyword.value), (
                    f"{where} {keyword.arg}"
                )
            if ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), f"{where} loads without weights_only"


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


def test_board_s_modules_import_without_torch_and_without_images():
    modules = [module for module in of_a_board() if not module.startswith(NEEDS_MORE)]
    import_without(("torch", "onnx", "jwt", "PIL", "rich", "matplotlib"), modules)


def test_board_s_other_modules_import_without_torch():
    pytest.importorskip("jwt")
    pytest.importorskip("PIL")
    pytest.importorskip("rich")
    import_without(("torch", "onnx", "matplotlib"), of_a_board())


def test_wire_imports_without_the_runtime():
    modules = [m for m in SOURCES if within(m, "edge_runtime.wire") and m != "edge_runtime.wire.tokens"]
    import_without(("torch", "onnx", "onnxruntime", "jwt"), modules)


ON_A_BOARD = ("devices.firmware", "devices.health", "devices.meters")
"""What the agent loads of devices."""


@pytest.mark.parametrize("module", [module for module in SOURCES if within(module, "devices")])
def test_boards_need_little_beside_the_standard_library(module):
    names = {name.split(".")[0] for name in imports_of(SOURCES[module])}
    more = set() if any(within(module, part) for part in ON_A_BOARD) else {"msgspec", "packaging", "rich", "matplotlib"}
    if module == "devices.__main__":
        more |= {"edge_runtime", "broker_server"}
    assert names <= {"devices", *sys.stdlib_module_names, *more}


def test_source_files_are_found():
    assert {"edge_runtime.wire", "edge_runtime.wire.messages", "devices"} <= SOURCES.keys()
