#!/usr/bin/env bash
# Boots the test machine and runs end-to-end tests in it: cgroup v2, systemd, Debian's kernel. The arguments are those of
# the tests' binary (names, --skip, --exact, --test-threads); none: the selection below. VM_SUITE=trixie takes another Debian.
# The emulation is in software and needs no rights beyond root's in its own files.
set -euo pipefail
cd "$(dirname "$0")/.."

vm=target/vm/${VM_SUITE:-bookworm}
limit=${VM_LIMIT:-1800} # seconds
scripts/vm-root.sh "$vm"

binary=$(cargo build --locked --workspace --bins --test promises --message-format=json-render-diagnostics |
  jq -r 'select(.profile.test and .target.name == "promises").executable // empty')
run=$(mktemp -d "target/vm/run.XXXXXX")
trap 'rm -rf "$run"' EXIT
payload=$run/payload
mkdir -p "$payload/bin/deps"
if [ $# = 0 ]; then
  set -- life:: exits::reasons exec:: update:: checkpoint:: policy::apparmor policy::profiles --test-threads=2
fi
cp scripts/vm-guest.sh "$payload/"
for program in wharf lab; do
  objcopy --strip-debug "target/debug/$program" "$payload/bin/$program"
done
objcopy --strip-debug "$binary" "$payload/bin/deps/promises"
{
  printf 'export WHARF_HANDLERS=%q\n' "${WHARF_HANDLERS:-builtin runc crun}"
  printf 'COMMAND=(/payload/bin/deps/promises'
  printf ' %q' "$@"
  printf ')\n'
} >"$payload/settings"
mke2fs -q -t ext4 -O ^has_journal -d "$payload" "$run/payload.ext4" 2G

accelerator=(-accel "tcg,thread=multi" -cpu max)
: >"$run/code"
tail -f "$run/output" --retry 2>/dev/null &
tail=$!
timeout --foreground "$limit" qemu-system-x86_64 -machine q35 "${accelerator[@]}" -smp 2 -m "${VM_MEMORY:-4096}" \
  -nodefaults -no-user-config -display none -no-reboot -snapshot \
  -kernel "$vm/vmlinuz" -initrd "$vm/initrd" -append "console=ttyS0 root=/dev/vda quiet panic=-1" \
  -drive "file=$vm/root.ext4,if=virtio,format=raw,cache=unsafe" \
  -drive "file=$run/payload.ext4,if=virtio,format=raw,cache=unsafe" \
  -device virtio-serial -chardev "file,id=output,path=$run/output" -device "virtserialport,chardev=output,name=output" \
  -chardev "file,id=code,path=$run/code" -device "virtserialport,chardev=code,name=code" \
  -serial "file:$run/console" || echo "the machine did not end by itself within $limit s" >&2
sleep 1
kill $tail
code=$(cat "$run/code")
if [ -z "$code" ]; then
  echo "the machine ended without a result; its console's last words:" >&2
  tail -30 "$run/console" >&2
  exit 1
fi
exit "$code"
