#!/bin/sh
# Installs everything of the agent but its Python package: unit, bus and polkit policy, settings.
#
#   sudo units/install.sh                 on this host; makes the group and reloads what has to be
#   DESTDIR=/some/root units/install.sh   into a root that is packed or booted later
#   PREFIX=/usr                           systemd, dbus and polkit read only what is below /usr
#   sudo units/install.sh remove          take it all away again, firewall rules included; settings
#                                         and the agent's own state stay
#
# Commands (balena-agent, balena-agentctl) come with the package: pip install, or the distribution.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
top=$(dirname -- "$here")
DESTDIR=${DESTDIR:-}
DESTDIR=${DESTDIR%/}
PREFIX=${PREFIX:-/usr}

action=${1:-install}
case $action in
install | remove) ;;
*)
    echo "units/install.sh: '$action' is neither install nor remove" >&2
    sed -n '2,10p' "$0" >&2
    exit 2
    ;;
esac

# put SOURCE TARGET: one file, readable by all; with `remove`, its target goes
put() {
    if [ ! -e "$1" ]; then
        return 0
    fi
    if [ "$action" = remove ]; then
        rm -f -- "$DESTDIR$2"
        return 0
    fi
    mkdir -p "$DESTDIR$(dirname -- "$2")"
    cp -- "$1" "$DESTDIR$2.new"
    chmod 0644 "$DESTDIR$2.new"
    mv -f -- "$DESTDIR$2.new" "$DESTDIR$2"
    echo "$DESTDIR$2"
}

# unchain PROGRAM: take our chain out of the packet filter; foreign rules are not touched
unchain() {
    if ! command -v "$1" >/dev/null || ! "$1" -w 10 -n -L BALENA-FIREWALL >/dev/null 2>&1; then
        return 0
    fi
    while "$1" -w 10 -D INPUT -j BALENA-FIREWALL 2>/dev/null; do :; done
    "$1" -w 10 -F BALENA-FIREWALL
    "$1" -w 10 -X BALENA-FIREWALL
}

if [ "$action" = remove ] && [ -z "$DESTDIR" ]; then
    if [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now balena-agent.service || true
        systemctl clean --what=runtime balena-agent.service 2>/dev/null || true # the API key
    fi
    unchain iptables
    unchain ip6tables
fi

# Roots in which /lib and /usr/lib are still two directories keep their units in /lib.
units=$PREFIX/lib/systemd/system
if [ -d "$DESTDIR/lib/systemd/system" ] && [ ! -L "$DESTDIR/lib" ]; then
    units=/lib/systemd/system
fi

put "$here/balena-agent.service" "$units/balena-agent.service"
put "$here/balena-agent.tmpfiles" "$PREFIX/lib/tmpfiles.d/balena-agent.conf"
put "$here/balena-agent.sysusers" "$PREFIX/lib/sysusers.d/balena-agent.conf"
put "$here/balena-agent.sysctl" "$PREFIX/lib/sysctl.d/50-balena-agent.conf"
put "$here/balena-agent.networkmanager" "$PREFIX/lib/NetworkManager/conf.d/50-balena-agent.conf"
put "$top/dbus/io.balena.Agent1.conf" "$PREFIX/share/dbus-1/system.d/io.balena.Agent1.conf"
for file in "$top"/dbus/*.xml; do
    put "$file" "$PREFIX/share/dbus-1/interfaces/$(basename -- "$file")"
done
for file in "$top"/dbus/*.policy; do
    put "$file" "$PREFIX/share/polkit-1/actions/$(basename -- "$file")"
done
for file in "$top"/dbus/*.rules; do
    put "$file" "$PREFIX/share/polkit-1/rules.d/$(basename -- "$file")"
done
for file in "$here"/*.bash-completion "$top"/completions/*.bash; do
    name=$(basename -- "$file")
    put "$file" "$PREFIX/share/bash-completion/completions/${name%.bash*}"
done
if [ "$action" = install ] && [ ! -e "$DESTDIR/etc/balena-agent/agent.conf" ]; then
    put "$here/agent.conf" /etc/balena-agent/agent.conf
fi

if [ -n "$DESTDIR" ]; then
    exit 0
fi
if [ -d /run/systemd/system ] && systemctl is-active --quiet NetworkManager.service; then
    systemctl reload NetworkManager.service || true
fi
if [ "$action" = remove ]; then
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
    exit 0
fi
systemd-sysusers balena-agent.conf
systemd-tmpfiles --create balena-agent.conf
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl is-active --quiet dbus.service; then
        systemctl reload dbus.service
    fi
fi
