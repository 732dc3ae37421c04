"""A real sshd of this user's, on a port of its own, which sends every installation into another root folder."""

import contextlib
import getpass
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_port


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("not installed here: sshd (package openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\n"
        f"SetEnv MAS_EDGE_ROOT={folder}/root PATH={path}\n"
    )
    key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (folder / "config").write_text(
        f"Host *\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  BatchMode yes\n"
        f"  UserKnownHostsFile {folder}/known\n"
    )
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "log").open("w"))
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        if process.poll() is not None:
            pytest.skip(f"sshd does not run here: {(folder / 'log').read_text()[-300:]}")
        time.sleep(0.1)
    done = subprocess.run(
        ["ssh", "-F", folder / "config", "127.0.0.1", "echo $MAS_EDGE_ROOT"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stdout.strip() != f"{folder}/root":
        process.terminate()
        pytest.skip(f"sshd lets nobody in here: {done.stderr.strip()[-300:]}")
    yield folder
    process.terminate()
    process.wait()
