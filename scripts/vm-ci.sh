#!/usr/bin/env bash
# The part of `make vm-test` that CI has time for: a small machine with systemd and cgroup version 2, a few end-to-end tests
# with each cgroup driver, the built-in handler, AppArmor on. Some fifty seconds on two idle processors.
# Says loudly when it can't run, and why, and fails then only with VM_REQUIRED=1; it fails when a test does.
set -euo pipefail
cd "$(dirname "$0")/.."

left_out() {
  {
    echo "########################################################################################"
    echo "## The virtual machine's tests were NOT run: $*"
    echo "## Cgroup version 2, the systemd driver and AppArmor were NOT checked."
    echo "########################################################################################"
  } >&2
  [ "${VM_REQUIRED:-}" = 1 ] && exit 1
  exit 0
}

[ "$(id -u)" = 0 ] || left_out "they need root, to install packages and to make a root file system."
[ "$(uname -m)" = x86_64 ] || left_out "they emulate x86-64 only."
command -v dpkg-query >/dev/null || left_out "this is not Debian."
missing=()
for package in qemu-system-x86 systemd procps; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' $package 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -q || left_out "apt-get update failed."
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" ||
    left_out "${missing[*]} can't be installed."
fi
apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || apt-get update -q || left_out "apt-get update failed."
VM_SUITE=small scripts/vm-root.sh target/vm/small || left_out "its root file system can't be made."
WHARF_HANDLERS=builtin VM_SUITE=small VM_STEPS="cgroupfs systemd" VM_LIMIT=${VM_LIMIT:-600} \
  scripts/vm-test.sh --test-threads=2 life::limits_are update::rule_32_limits policy::apparmor \
  systemd::a_container
