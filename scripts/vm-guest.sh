#!/usr/bin/env bash
# Runs in the test machine, as its one service: tells what kind of machine it is, takes the steps that are asked for, and hands
# out their words and the worst exit code by two virtual serial ports.
set -uo pipefail
# The device of a port, with or without udev.
port() { for each in /sys/class/virtio-ports/*; do [ "$(cat "$each/name")" != "$1" ] || echo "/dev/${each##*/}"; done; }
exec >"$(port output)" 2>&1 </dev/null
cd /payload || exit
export RUST_BACKTRACE=1 TMPDIR=/tmp
unset NOTIFY_SOCKET
echo "kernel $(uname -r), $(systemctl --version | head -1), $(stat -f -c %T /sys/fs/cgroup) at /sys/fs/cgroup, $(nproc) CPUs, up $(cut -d' ' -f1 /proc/uptime) s"
systemctl --failed --no-legend
worst=0
# step NAME COMMAND...
step() {
  echo "==== $1"
  shift
  local start=$SECONDS code
  "$@"
  code=$?
  echo "---- $((SECONDS - start)) s, exit code $code"
  [ $code = 0 ] || worst=$code
}
# shellcheck source=/dev/null
. ./steps
if [ $worst != 0 ]; then
  dmesg --level=emerg,alert,crit,err | tail -20
  # What SELinux has forbidden, if it has.
  dmesg | sed -n '/permissive=1/d; s/.*avc: *denied/SELinux: denied/p' | sort | uniq -c | tail -20
fi
echo $worst >"$(port code)"
