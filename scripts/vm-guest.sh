#!/usr/bin/env bash
# Runs in the test machine, as its one service: tells what kind of machine it is, runs the tests, and hands out their
# words and exit code by two virtual serial ports.
set -uo pipefail
exec >/dev/virtio-ports/output 2>&1 </dev/null
cd /payload || exit
export RUST_BACKTRACE=1 TMPDIR=/tmp
# shellcheck source=/dev/null
. ./settings
echo "kernel $(uname -r), $(stat -f -c %T /sys/fs/cgroup) at /sys/fs/cgroup, $(nproc) CPUs, up $(cut -d' ' -f1 /proc/uptime) s"
systemctl --failed --no-legend
"${COMMAND[@]}"
code=$?
if [ $code != 0 ]; then
  dmesg --level=emerg,alert,crit,err | tail -20
fi
echo $code >/dev/virtio-ports/code
