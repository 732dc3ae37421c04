#!/bin/sh
# Takes the agent off this board: its service, its code and what was set up for it. What it has stored stays, unless the
# first word is "purge". Run as root.
set -eu

root=${MAS_EDGE_ROOT:-} # another root folder, for tests
units=$root/etc/systemd
state=$root/var/lib/mas-edge

say() { echo "mas-edge: $*"; }
service() { # systemctl, or what stands for it in another root folder
    if [ -n "$root" ]; then "$root/systemctl" "$@"; else systemctl "$@"; fi
}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || {
    say "this changes the whole system: run it as root" >&2
    exit 1
}
for unit in mas-edge-install.service mas-edge.service; do
    service --quiet disable --now "$unit" 2> /dev/null || true
    rm -f "$units/system/$unit"
done
rm -rf "$root/opt/mas-edge" "$root/opt/mas-edge.new" "$root/opt/mas-edge.old" "$root/boot/firmware/mas-edge"
rm -f "$units/system/systemd-time-wait-sync.service.d/mas-edge.conf" "$units/system.conf.d/mas-edge.conf" \
    "$units/timesyncd.conf.d/mas-edge.conf" "$root/etc/NetworkManager/conf.d/mas-edge.conf" \
    "$root/etc/udev/rules.d/70-mas-edge.rules"
service daemon-reload || true
if [ "${1:-}" = purge ]; then
    rm -rf "$state"
    rm -f "$root/etc/sysusers.d/mas-edge.conf"
    [ -n "$root" ] || ! id mas-edge > /dev/null 2>&1 || userdel mas-edge
    say "uninstalled; nothing of it is left"
else
    say "uninstalled; its data set, key and results stay in $state"
fi
