"""The service that installs the agent at each boot until it has succeeded once, and the shell lines that place it.

What cloud-init and firstrun.sh do is done once, even if the power goes in the middle; they only place this service.
"""

# coverage: every branch

import shlex
from importlib import resources

NAME = "mas-edge-install.service"
UNITS = "etc/systemd/system"
UNIT = f"{UNITS}/{NAME}"
WANTED = f"{UNITS}/multi-user.target.wants/{NAME}"


def unit(folder: str) -> str:
    """Return the service, for a folder of install.sh."""
    text = resources.files("devices.firstboot").joinpath(NAME).read_text(encoding="utf-8")
    return text.replace("@FOLDER@", folder)


def placing(folder: str) -> str:
    """Return shell lines that place the service once: the file that says so is there when all else is on the disk.

    They set `unit` and `wanted`, its file and the link that starts it at each boot, below `$root`.
    """
    return "\n".join(
        [
            f"unit=$root/{UNIT} wanted=$root/{WANTED}",
            'if [ ! -e "$unit" ]; then',
            '    mkdir -p "$(dirname "$wanted")"',
            f'    ln -sfn /{UNIT} "$wanted"',
            f'    printf %s {shlex.quote(unit(folder))} > "$unit.new"',
            "    sync",
            '    mv "$unit.new" "$unit"',
            "    sync",
            "fi",
        ]
    )
