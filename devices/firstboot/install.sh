#!/bin/sh
# Installs the agent from the folder that this file lies in, which has settings, wheels and agent.toml beside it.
# Run as root. It may be cut off anywhere and run again: what is there already stays, and what is half done is done anew.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
root=${MAS_EDGE_ROOT:-} # another root folder, for tests
state=$root/var/lib/mas-edge
code=$root/opt/mas-edge
units=$root/etc/systemd

say() { echo "mas-edge: $*"; }
fail() {
    say "$*" >&2
    exit 1
}
keep() { # keep MODE FROM TO: a file that appears whole
    install -m "$1" "$2" "$3.new"
    mv -f "$3.new" "$3"
}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "this installs for the whole system: run it as root"
[ -f "$here/settings" ] || fail "$here has no file 'settings': it is not what was prepared"
# shellcheck source=/dev/null
. "$here/settings"

# First of all the token leaves the boot partition, which anyone with the card can read, for a file for root alone, and
# what is left there is overwritten. The name changes in between: half of a token is never taken for one.
mkdir -p "$state"
chmod 700 "$state"
if [ -f "$here/agent.toml" ]; then
    (
        umask 077
        keep 600 "$here/agent.toml" "$state/agent.toml"
    )
    sync
    mv -f "$here/agent.toml" "$here/agent.spent"
fi
if [ -f "$here/agent.spent" ]; then
    dd if=/dev/zero of="$here/agent.spent" bs="$(wc -c < "$here/agent.spent")" count=1 conv=notrunc 2> /dev/null || true
    sync
    rm -f "$here/agent.spent"
fi
[ -f "$state/agent.toml" ] || fail "there is no agent.toml, neither in $here nor in $state: enrol the device"
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || fail "files in $here are damaged: prepare the card again"

# The Python that the wheels are for.
python=
for name in "${PYTHON_PATH:-}" "python$PYTHON_VERSION" python3; do
    command -v "${name:-/nowhere}" > /dev/null || continue
    if [ "$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$PYTHON_VERSION" ]; then
        python=$(command -v "$name")
        break
    fi
done
[ -n "$python" ] || fail "the wheels are for Python $PYTHON_VERSION, which this system has not: make them for the one it has"

# The code: a virtual environment of its own, from the wheels alone. pip comes as a wheel, so nothing must be installed.
# It takes its place when all of it is on the disk.
if [ "$(cat "$code/wheels" 2> /dev/null)" != "$WHEELS_DIGEST" ]; then
    say "installing the agent into $code"
    rm -rf "$code.new"
    mkdir -p "$(dirname "$code")"
    "$python" -m venv --without-pip "$code.new"
    set -- "$here"/wheels/pip-*.whl
    "$code.new/bin/python" "$1/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-index \
        --find-links "$here/wheels" 'mas-edge[board]' < /dev/null
    echo "$WHEELS_DIGEST" > "$code.new/wheels"
    sync
    rm -rf "$code"
    mv "$code.new" "$code"
fi

# The user that it runs as, with the groups that let it read the board's meters. Unlike useradd, systemd-sysusers leaves
# no locks behind when the power goes.
owner=
if [ -z "$root" ]; then
    owner=mas-edge
    mkdir -p /etc/sysusers.d
    {
        echo "u $owner - \"MAS Edge agent\" $state /usr/sbin/nologin"
        for group in video i2c; do
            ! getent group "$group" > /dev/null || echo "m $owner $group"
        done
    } > /etc/sysusers.d/mas-edge.conf
    systemd-sysusers /etc/sysusers.d/mas-edge.conf
fi
[ ! -f "$here/ca.pem" ] || keep 644 "$here/ca.pem" "$state/ca.pem"
if [ -d "$here/data" ] && [ ! -d "$state/data" ]; then
    rm -rf "$state/data.new"
    cp -R "$here/data" "$state/data.new"
    sync
    mv "$state/data.new" "$state/data"
fi
[ -z "$owner" ] || chown -R "$owner:$owner" "$state"

# Keys of the person's user, where no cloud-init or firstrun.sh has put them.
if [ -f "$here/authorized_keys" ] && [ -z "$root" ] && id "$USER_NAME" > /dev/null 2>&1; then
    home=$(getent passwd "$USER_NAME" | cut -d: -f6)
    install -d -m 700 -o "$USER_NAME" -g "$(id -g "$USER_NAME")" "$home/.ssh"
    install -m 600 -o "$USER_NAME" -g "$(id -g "$USER_NAME")" "$here/authorized_keys" "$home/.ssh/authorized_keys"
fi

# The service. What the board has of memory is known here alone.
total_mib=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo) / 1024))
left_mib=$((total_mib - RESERVE_MIB))
limit_mib=${MEMORY_MAX_MIB:-$left_mib}
if [ "$limit_mib" -gt "$left_mib" ]; then
    say "this board has $total_mib MiB, so $left_mib MiB are the agent's in place of the $limit_mib MiB that were asked for"
    limit_mib=$left_mib
fi
[ "$limit_mib" -ge 64 ] || fail "of $total_mib MiB nothing is left for the agent when $RESERVE_MIB MiB are kept for the system"
mkdir -p "$units/system/systemd-time-wait-sync.service.d" "$units/system.conf.d" "$units/timesyncd.conf.d"
sed "s/@MEMORY_MAX@/${limit_mib}/" "$here/mas-edge.service" > "$units/system/mas-edge.service.new"
mv -f "$units/system/mas-edge.service.new" "$units/system/mas-edge.service"
# The limit is the kernel's to hold. A Raspberry Pi's firmware switches that off, and its command line on again.
cgroups=$root/sys/fs/cgroup
if ! grep -qsw memory "$cgroups/cgroup.controllers" && [ ! -e "$cgroups/memory/memory.limit_in_bytes" ]; then
    for line in /boot/firmware/current/cmdline.txt /boot/firmware/cmdline.txt; do
        [ -f "$root$line" ] || continue
        if ! grep -q cgroup_enable=memory "$root$line"; then
            sed '1s/$/ cgroup_enable=memory/' "$root$line" > "$root$line.new"
            sync
            mv -f "$root$line.new" "$root$line"
        fi
        break
    done
    say "the kernel holds nobody to a limit of memory now: start the board again, or the agent has to watch itself"
fi
# A board that hangs is started again by its hardware watchdog; a Raspberry Pi's counts to 15 s.
printf '[Manager]\nRuntimeWatchdogSec=14s\n' > "$units/system.conf.d/mas-edge.conf"
# The token and certificates are held against the time: it is set first. Without a time server it goes on after a while.
printf '[Service]\nTimeoutStartSec=300\n' > "$units/system/systemd-time-wait-sync.service.d/mas-edge.conf"
if [ -n "${NTP:-}" ]; then
    printf '[Time]\nNTP=%s\n' "$NTP" > "$units/timesyncd.conf.d/mas-edge.conf"
fi

# A radio that sleeps loses what is sent to it.
if [ -d "$root/etc/NetworkManager" ]; then
    mkdir -p "$root/etc/NetworkManager/conf.d"
    printf '[connection]\nwifi.powersave=2\n' > "$root/etc/NetworkManager/conf.d/mas-edge.conf"
else
    mkdir -p "$root/etc/udev/rules.d"
    echo 'ACTION=="add", SUBSYSTEM=="net", KERNEL=="wl*", RUN+="/usr/sbin/iw dev %k set power_save off"' \
        > "$root/etc/udev/rules.d/70-mas-edge.rules"
fi

if [ -z "$root" ]; then
    [ "${SSH:-}" != 1 ] || systemctl --quiet enable ssh || systemctl --quiet enable sshd || say "there is no SSH server to enable"
    systemctl --quiet enable systemd-time-wait-sync.service || say "the time is not waited for: systemd-timesyncd is not there"
    systemctl --quiet enable mas-edge.service
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        # Enabled alone, both would heed this from the next boot on only, and the agent would start before the time is set.
        systemctl --no-block restart systemd-timesyncd.service || true
        systemctl --no-block start systemd-time-wait-sync.service || true
        [ "${SSH:-}" != 1 ] || systemctl --no-block start ssh || true
        systemctl --no-block restart mas-edge.service
    fi
fi
sync
say "$DEVICE is set up: at most $limit_mib of $total_mib MiB are the agent's"
