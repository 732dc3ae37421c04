#!/bin/sh
# Installs the agent from the folder that this file lies in, which has settings, wheels and agent.toml beside it.
# Run as root. It may be run again: what is there already stays, and a half-finished installation is done anew.
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
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || fail "files in $here are damaged: prepare the card again"
[ -f "$here/agent.toml" ] || [ -f "$state/agent.toml" ] ||
    fail "there is no agent.toml, neither in $here nor in $state: enrol the device"

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
if [ "$(cat "$code/wheels" 2> /dev/null)" != "$WHEELS_DIGEST" ]; then
    say "installing the agent into $code"
    rm -rf "$code.new"
    mkdir -p "$(dirname "$code")"
    "$python" -m venv --without-pip "$code.new"
    set -- "$here"/wheels/pip-*.whl
    "$code.new/bin/python" "$1/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-index \
        --find-links "$here/wheels" 'mas-edge[board]' < /dev/null
    echo "$WHEELS_DIGEST" > "$code.new/wheels"
    rm -rf "$code"
    mv "$code.new" "$code"
fi

# The user that it runs as, with the groups that let it read the board's meters.
owner=
if [ -z "$root" ]; then
    owner=mas-edge
    id "$owner" > /dev/null 2>&1 ||
        useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$owner"
    for group in video i2c; do
        getent group "$group" > /dev/null && usermod --append --groups "$group" "$owner"
    done
fi
mkdir -p "$state"

# The token moves from the boot partition, which anyone with the card can read, to a file for the agent alone.
if [ -f "$here/agent.toml" ]; then
    (
        umask 077
        keep 600 "$here/agent.toml" "$state/agent.toml"
    )
    sync
    rm -f "$here/agent.toml"
fi
[ ! -f "$here/ca.pem" ] || keep 644 "$here/ca.pem" "$state/ca.pem"
if [ -d "$here/data" ] && [ ! -d "$state/data" ]; then
    rm -rf "$state/data.new"
    cp -R "$here/data" "$state/data.new"
    mv "$state/data.new" "$state/data"
fi
[ -z "$owner" ] || chown -R "$owner:$owner" "$state"
chmod 700 "$state"

# Keys of the person's user, where no cloud-init or firstrun.sh has put them.
if [ -f "$here/authorized_keys" ] && [ -z "$root" ] && id "$USER_NAME" > /dev/null 2>&1; then
    home=$(getent passwd "$USER_NAME" | cut -d: -f6)
    install -d -m 700 -o "$USER_NAME" -g "$(id -g "$USER_NAME")" "$home/.ssh"
    install -m 600 -o "$USER_NAME" -g "$(id -g "$USER_NAME")" "$here/authorized_keys" "$home/.ssh/authorized_keys"
fi

# The service. What the board has of memory is known here alone.
total_mib=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo) / 1024))
limit_mib=${MEMORY_MAX_MIB:-$((total_mib - RESERVE_MIB))}
[ "$limit_mib" -ge 64 ] || fail "of $total_mib MiB nothing is left for the agent when $RESERVE_MIB MiB are kept for the system"
mkdir -p "$units/system/systemd-time-wait-sync.service.d" "$units/system.conf.d" "$units/timesyncd.conf.d"
sed "s/@MEMORY_MAX@/${limit_mib}M/" "$here/mas-edge.service" > "$units/system/mas-edge.service.new"
mv -f "$units/system/mas-edge.service.new" "$units/system/mas-edge.service"
# A board that hangs is started again by its hardware watchdog; a Raspberry Pi's counts to 15 s.
printf '[Manager]\nRuntimeWatchdogSec=14s\n' > "$units/system.conf.d/mas-edge.conf"
# The token and certificates are held against the time: it is set first. Without a time server it goes on after a while.
printf '[Service]\nTimeoutStartSec=300\n' > "$units/system/systemd-time-wait-sync.service.d/mas-edge.conf"
if [ -n "${NTP:-}" ]; then
    printf '[Time]\nNTP=%s\n' "$NTP" > "$units/timesyncd.conf.d/mas-edge.conf"
fi

if [ -z "$root" ]; then
    [ "${SSH:-}" != 1 ] || systemctl --quiet enable ssh || systemctl --quiet enable sshd || say "there is no SSH server to enable"
    systemctl --quiet enable systemd-time-wait-sync.service || say "the time is not waited for: systemd-timesyncd is not there"
    systemctl --quiet enable mas-edge.service
    if [ "${START:-1}" = 1 ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        # Enabled alone, both would heed this from the next boot on only, and the agent would start before the time is set.
        systemctl --no-block restart systemd-timesyncd.service || true
        systemctl --no-block start systemd-time-wait-sync.service || true
        [ "${SSH:-}" != 1 ] || systemctl --no-block start ssh || true
        systemctl --no-block restart mas-edge.service
    fi
fi
say "$DEVICE is set up: at most $limit_mib of $total_mib MiB are the agent's"
