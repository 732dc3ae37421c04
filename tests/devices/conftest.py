import hashlib
import json
import zipfile

import pytest

AGENT = """\
device = "pi-01"
federation = "home"
url = "mqtts://server.lan:8883"
token = "eyJhbGciOiJFZERTQSJ9.secret.signature"
server_key = "9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c"
data = "data"
state = "state"
"""


@pytest.fixture
def agent_toml(tmp_path):
    """A device's configuration as the server's enrolment writes it."""

    def write(name="agent.toml", **changes):
        lines = dict(line.split(" = ", 1) for line in AGENT.splitlines())
        lines |= {key: f'"{value}"' for key, value in changes.items()}
        path = tmp_path / name
        path.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        return path

    return write


def write_wheel(folder, name, version="1.0", *, requires=(), modules=()):
    """A wheel with nothing much in it."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name.replace('_', '-')}", f"Version: {version}"]
    lines += ["Provides-Extra: board"] * (name == "mas_edge") + [f"Requires-Dist: {need}" for need in requires]
    files = {f"{info}/METADATA": "\n".join(lines) + "\n"}
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files |= dict(modules or {f"{name}/__init__.py": ""})
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def wheel():
    """Writes small wheels."""
    return write_wheel


@pytest.fixture
def wheels(tmp_path):
    """A folder of wheels for a board, as `wheelhouse` leaves it."""

    def make(python="3.13", architecture="aarch64", name="wheels"):
        folder = tmp_path / name
        folder.mkdir()
        for package in ("mas_edge", "numpy", "pip"):
            write_wheel(folder, package)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.whl"))}
        manifest = {"python": python, "architecture": architecture, "glibc": "2.41", "files": files}
        (folder / "wheelhouse.json").write_text(json.dumps(manifest))
        return folder

    return make
