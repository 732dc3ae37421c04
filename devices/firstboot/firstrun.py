"""firstrun.sh for Raspberry Pi OS bookworm, which cmdline.txt starts before anything else until it has ended.

It uses the system's own programs (userconf, raspi-config) and writes the network for NetworkManager: a connection
file whose network name is a list of bytes, so that no character of it can be misread.
"""

# coverage: every branch

import shlex

from devices.firstboot.bundle import FOLDER
from devices.firstboot.install_unit import placing
from devices.firstboot.settings import BoardSettings, Wifi

_PLACE = "/boot/firmware"


def script(settings: BoardSettings) -> bytes:
    """Return the script. It goes on after a step that fails, so that a board without a screen still comes up."""
    q = shlex.quote
    hash_ = settings.password_hash or "*"
    lines = [
        "#!/bin/sh",
        "# Sets this board up at its first boot; written by `python -m devices flash`.",
        f"exec > {_PLACE}/mas-edge-firstrun.log 2>&1",
        "for name in passwd shadow group gshadow subuid subgid; do rm -f /etc/$name.lock; done  # of a boot cut off",
        f"old=$(tr -d '[:space:]' < /etc/hostname); echo {q(settings.hostname)} > /etc/hostname",
        f'sed -i "s/127.0.1.1.*$old/127.0.1.1\\t{settings.hostname}/" /etc/hosts',
        "first=$(getent passwd 1000 | cut -d: -f1)",
        "if [ -x /usr/lib/userconf-pi/userconf ]; then",
        f"    /usr/lib/userconf-pi/userconf {q(settings.user)} {q(hash_)}",
        'elif [ -z "$first" ]; then',
        f"    useradd --create-home --shell /bin/bash --groups sudo,video --password {q(hash_)} {q(settings.user)}",
        "fi",
    ]
    if settings.ssh_keys:
        home = f"/home/{settings.user}"
        owner = f"-o {q(settings.user)} -g {q(settings.user)}"
        keys = "\n".join(settings.ssh_keys)
        lines += [
            f"install {owner} -m 700 -d {home}/.ssh",
            f"printf '%s\\n' {q(keys)} > {home}/.ssh/authorized_keys",
            f"chown {q(settings.user)}: {home}/.ssh/authorized_keys; chmod 600 {home}/.ssh/authorized_keys",
            "printf 'PasswordAuthentication no\\n' > /etc/ssh/sshd_config.d/mas-edge.conf",
        ]
    if settings.password_hash is None:
        lines += [
            f"echo {q(settings.user + ' ALL=(ALL) NOPASSWD:ALL')} > /etc/sudoers.d/mas-edge",
            "chmod 440 /etc/sudoers.d/mas-edge",
        ]
    if settings.wifi is not None:
        lines += [
            f"raspi-config nonint do_wifi_country {settings.wifi.country}",
            "rfkill unblock wifi",
            f"umask 077; printf '%s\\n' {q(connection(settings.wifi))} > {CONNECTION}; umask 022",
        ]
    if settings.timezone is not None:
        lines.append(f"raspi-config nonint do_change_timezone {q(settings.timezone)}")
    lines += [
        "root=",
        placing(f"{_PLACE}/{FOLDER}"),
        f"sed -i 's| systemd\\.[^ ]*||g' {_PLACE}/cmdline.txt",
        "sync",  # the line must not name a script that is gone
        f"rm -f {_PLACE}/firstrun.sh",
        "exit 0",
    ]
    return ("\n".join(lines) + "\n").encode()


CONNECTION = "/etc/NetworkManager/system-connections/mas-edge.nmconnection"


def connection(wifi: Wifi) -> str:
    """Return NetworkManager's file for a wireless network, whose radio does not sleep (nm-settings-keyfile(5))."""
    name = "".join(f"{byte};" for byte in wifi.ssid.encode())
    lines = ["[connection]", "id=mas-edge", "type=wifi", "[wifi]", "mode=infrastructure", "powersave=2", f"ssid={name}"]
    if wifi.hidden:
        lines.append("hidden=true")
    if wifi.password is not None:
        escaped = wifi.password.replace("\\", "\\\\").replace(" ", "\\s")
        lines += ["[wifi-security]", "key-mgmt=wpa-psk", f"psk={escaped}"]  # wpa-psk is WPA3's SAE too
    lines += ["[ipv4]", "method=auto", "[ipv6]", "method=auto"]
    return "\n".join(lines)
