"""cloud-init's NoCloud files: meta-data, user-data and network-config.

They are written as JSON, which is also YAML, so that nothing has to be quoted by hand.
(cloud-init documentation: NoCloud, module reference, network configuration version 2; netplan YAML reference)
"""

# coverage: every branch

import hashlib
import json

from devices.firstboot.bundle import FOLDER
from devices.firstboot.install_unit import NAME, WANTED, placing
from devices.firstboot.settings import BoardSettings

PLACE = "/boot/firmware"
"""The mount point of the boot partition."""
EACH_BOOT = f"""set -u
root=${{MAS_EDGE_ROOT:-}}
if [ -L "$root/{WANTED}" ]; then
    rm -f "$root/var/lib/cloud/instance/sem/"*
    for name in passwd shadow group gshadow subuid subgid; do rm -f "$root/etc/$name.lock"; done
fi
{placing(f"{PLACE}/{FOLDER}")}
if [ -z "$root" ] && [ -L "$wanted" ]; then
    systemctl daemon-reload
    systemctl --no-block start {NAME}
fi
"""
"""Places the service that installs the agent. Where an earlier boot was cut off before that succeeded, what cloud-init
does once for each instance is done again: it writes down that a step is done before it does it (cloud-init#5699)."""

_ADDRESSES = {"dhcp4": True, "dhcp6": True}
"""Without dhcp6, netplan has NetworkManager ignore IPv6."""


def instance_id(settings: BoardSettings, token: bytes) -> str:
    """Return a name for this setup, which changes with any part of it, so that cloud-init runs again."""
    known = hashlib.sha256(b"\0".join([user_data(settings), network_config(settings), token])).hexdigest()
    return f"mas-edge-{settings.hostname}-{known[:12]}"


def meta_data(settings: BoardSettings, instance: str) -> bytes:
    """Return the file meta-data; by `dsmode: local` cloud-init runs before the network is up."""
    return _yaml({"instance-id": instance, "local-hostname": settings.hostname, "dsmode": "local"})


def user_data(settings: BoardSettings) -> bytes:
    """Return the file user-data: the user, and at each boot the placing of what installs the agent."""
    user: dict[str, object] = {
        "name": settings.user,
        "gecos": "MAS Edge",
        "groups": "adm,dialout,sudo,video,i2c,gpio,netdev,users",
        "shell": "/bin/bash",
        "lock_passwd": settings.password_hash is None,
    }
    if settings.password_hash is not None:
        user["passwd"] = settings.password_hash
    if settings.ssh_keys:
        user["ssh_authorized_keys"] = list(settings.ssh_keys)
    if settings.password_hash is None:
        user["sudo"] = "ALL=(ALL) NOPASSWD:ALL"  # the user has no password to enter
    config: dict[str, object] = {
        "hostname": settings.hostname,
        "manage_etc_hosts": True,
        "users": [user],
        "ssh_pwauth": settings.password_hash is not None and not settings.ssh_keys,
        "bootcmd": [["sh", "-c", EACH_BOOT]],
    }
    if settings.timezone is not None:
        config["timezone"] = settings.timezone
    return b"#cloud-config\n" + _yaml(config)


def network_config(settings: BoardSettings) -> bytes:
    """Return the file network-config: any wired interface by DHCP, and the wireless one if there is a network for it.

    The boot waits for the wireless interface if it has a network, and otherwise for the wired one. If both were
    optional, systemd-networkd would wait in vain for its full two minutes.
    """
    network: dict[str, object] = {
        "version": 2,
        "ethernets": {"wired": {"match": {"name": "e*"}, **_ADDRESSES, "optional": settings.wifi is not None}},
    }
    if settings.wifi is not None:
        point: dict[str, object] = {} if settings.wifi.password is None else {"password": settings.wifi.password}
        if settings.wifi.hidden:
            point["hidden"] = True
        network["wifis"] = {
            "wlan0": {
                **_ADDRESSES,
                "regulatory-domain": settings.wifi.country,
                "access-points": {settings.wifi.ssid: point},
            }
        }
    return _yaml({"network": network})


def _yaml(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
