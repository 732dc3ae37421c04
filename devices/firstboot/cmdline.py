"""The kernel's command line on a Raspberry Pi's boot partition, cmdline.txt: one line of words.

- `ds=nocloud;i=ID` names the instance for cloud-init; it overrides meta-data, so an old one must not stay.
- `cgroup_enable=memory`: the firmware switches memory control groups off, and MemoryMax would do nothing.
- `cfg80211.ieee80211_regdom=CC` permits the radio from the start.
- `systemd.run=…` starts firstrun.sh (bookworm); the script removes the three words.
"""

# coverage: every branch

FIRSTRUN = "/boot/firmware/firstrun.sh"
MAX_BYTES = 4096
_OURS = ("ds=nocloud", "systemd.run", "systemd.unit=kernel-command-line.target", "cgroup_enable=memory")
_COUNTRY = "cfg80211.ieee80211_regdom="


class CommandLineInvalid(ValueError):
    """cmdline.txt holds no kernel command line."""


def edit(text: bytes, *, instance: str | None = None, firstrun: bool = False, country: str | None = None) -> bytes:
    """Return the line with the words of the first boot, and without those of an earlier setup.

    Raises CommandLineInvalid unless the text is a single line of ASCII.
    """
    lines = text.strip().splitlines()
    if len(text) > MAX_BYTES or len(lines) != 1 or not text.isascii():
        raise CommandLineInvalid(
            "cmdline.txt on the boot partition is not one line: the image is damaged or not a board's"
        )
    words = [word for word in lines[0].decode("ascii").split() if not word.startswith(_OURS)]
    if country is not None:
        words = [word for word in words if not word.startswith(_COUNTRY)] + [_COUNTRY + country]
    words.append("cgroup_enable=memory")
    if instance is not None:
        words.append(f"ds=nocloud;i={instance}")
    if firstrun:
        words += [
            f"systemd.run={FIRSTRUN}",
            "systemd.run_success_action=reboot",
            "systemd.unit=kernel-command-line.target",
        ]
    return (" ".join(words) + "\n").encode("ascii")
