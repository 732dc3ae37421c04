#!/bin/sh
# Puts the version of the agent that lies beside this file in place of the one that is installed, and goes back to that one
# if the agent does not live. Run as root. It may be cut off anywhere and run again.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
root=${MAS_EDGE_ROOT:-} # another root folder, for tests
code=$root/opt/mas-edge
unit=mas-edge.service

say() { echo "mas-edge: $*"; }
fail() {
    say "$*" >&2
    exit 1
}
service() { # systemctl, or what stands for it in another root folder
    if [ -n "$root" ]; then "$root/systemctl" "$@"; else systemctl "$@"; fi
}
lives() { # whether the service runs for a while without starting again
    service restart "$unit" || return 1
    before=$(service show -p NRestarts --value "$unit")
    left_s=$HEALTH_S
    while [ "$left_s" -gt 0 ]; do
        sleep 1
        service is-active --quiet "$unit" || return 1
        left_s=$((left_s - 1))
    done
    [ "$(service show -p NRestarts --value "$unit")" = "$before" ]
}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "this updates the whole system: run it as root"
# shellcheck source=/dev/null
. "$here/settings"
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || fail "files in $here are damaged: send them again"
# An update that was cut off between its two moves.
[ -d "$code" ] || [ ! -d "$code.old" ] || mv "$code.old" "$code"
[ -d "$code" ] || fail "there is no agent here: set the board up with \`python -m devices provision\`"
if [ "$(cat "$code/wheels" 2> /dev/null)" = "$WHEELS_DIGEST" ]; then
    say "this version is here already"
    exit 0
fi

python=$(readlink -f "$code/bin/python")
rm -rf "$code.new" "$code.old"
"$python" -m venv --without-pip "$code.new"
set -- "$here"/wheels/pip-*.whl
"$code.new/bin/python" "$1/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-index \
    --find-links "$here/wheels" 'mas-edge[board]' < /dev/null
echo "$WHEELS_DIGEST" > "$code.new/wheels"
sync
mv "$code" "$code.old"
mv "$code.new" "$code"
if lives; then
    rm -rf "$code.old"
    say "updated"
    exit 0
fi
mv "$code" "$code.new"
mv "$code.old" "$code"
service restart "$unit" || true
rm -rf "$code.new"
fail "the agent did not live for $HEALTH_S s with the new version: the one before is back"
