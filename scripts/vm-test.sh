#!/usr/bin/env bash
# Boots the test machine and runs end-to-end tests in it: cgroup v2, systemd, Debian's kernel. The arguments are those of
# the tests' binary (names, --skip, --exact, --test-threads); none: the selection below. VM_SUITE=trixie takes another Debian.
# VM_STEPS says what runs: "cgroupfs" and "systemd" are the tests with either cgroup driver, "node" is Wharf as a unit
# with each runtime handler (scripts/vm-node.sh). "selinux" boots with SELinux in place of AppArmor, which excludes the others,
# and runs its tests twice: with labels alone, and with what they forbid forbidden. "critest" takes critest's flags
# (default: the specs of AppArmor) and wants the program as CRITEST or on PATH. "kubelet" runs pods of many shapes by kubelet
# itself (scripts/vm-kubelet.sh), which must be linked statically and is wanted as KUBELET or on PATH. VM_PATIENCE=3 has it and
# "node" wait three times as long.
# The emulation is in software and needs no rights beyond root's in its own files.
set -euo pipefail
cd "$(dirname "$0")/.."

vm=target/vm/${VM_SUITE:-bookworm}
limit=${VM_LIMIT:-1800} # seconds
scripts/vm-root.sh "$vm"

# VM_BIN is a directory with wharf, lab and promises, built before.
bin=${VM_BIN:-target/debug}
binary=${VM_BIN:+$VM_BIN/promises}
[ -n "$binary" ] || binary=$(cargo build --locked --workspace --bins --test promises --message-format=json-render-diagnostics |
  jq -r 'select(.profile.test and .target.name == "promises").executable // empty')
run=$(mktemp -d "target/vm/run.XXXXXX")
trap 'rm -rf "$run"' EXIT
payload=$run/payload
mkdir -p "$payload/bin/deps"
if [ $# = 0 ]; then
  default=1
  set -- life:: exits::reasons exec:: update:: systemd:: checkpoint:: policy::apparmor policy::profiles quotas:: --test-threads=2
fi
# With systemd's driver: what asks for cgroups by plain paths is left out.
without=(--skip rule_31 --skip a_pods_limits_are_set_on_its_own_cgroup)
mkdir -p "$payload/deploy/kubernetes"
cp scripts/vm-{guest,node,lib}.sh "$payload/"
cp deploy/{wharf.service,kubelet.yaml} "$payload/deploy/"
cp deploy/kubernetes/{node.sh,wharf.toml} "$payload/deploy/kubernetes/"
for program in wharf lab; do
  objcopy --strip-debug "$bin/$program" "$payload/bin/$program"
done
objcopy --strip-debug "$binary" "$payload/bin/deps/promises"
# The images that critest names; made here, as there is no compiler in the machine.
images() {
  [ ! -d "$payload/critest" ] || return 0
  mkdir "$payload/critest"
  "$bin/lab" critest-images "$payload/critest/storage" >"$payload/critest/digest"
}
{
  printf 'export WHARF_QUOTAS=1 WHARF_HANDLERS=%q VM_PATIENCE=%q\n' "${WHARF_HANDLERS:-builtin runc crun}" "${VM_PATIENCE:-1}"
  for one in ${VM_STEPS:-cgroupfs systemd node}; do
    case $one in
      cgroupfs) printf 'step "end-to-end tests, cgroupfs driver" /payload/bin/deps/promises' && printf ' %q' "$@" ;;
      # Labs have PID namespaces of their own, which runc and crun do not tell systemd of: they are the node's.
      systemd)
        printf 'WHARF_HANDLERS=builtin WHARF_CGROUP_DRIVER=systemd '
        printf 'step "end-to-end tests, systemd driver" /payload/bin/deps/promises' && printf ' %q' "$@" "${without[@]}"
        ;;
      selinux)
        lsm=selinux
        [ -z "${default:-}" ] || set -- selinux:: --test-threads=1
        for mode in 0 1; do
          printf 'setenforce %s && step "end-to-end tests, SELinux (enforce=%s)" /payload/bin/deps/promises' $mode $mode
          printf ' %q' "$@"
          echo
        done
        ;;
      critest)
        program=$(command -v "${CRITEST:-critest}") || { echo "critest is not there" >&2 && exit 2; }
        cp "$program" "$payload/bin/critest"
        cp critest.sh "$payload/"
        mkdir "$payload/target" && ln -s ../bin "$payload/target/debug"
        images
        [ -z "${default:-}" ] || set -- --ginkgo.focus=AppArmor
        for handler in ${WHARF_HANDLERS:-builtin runc crun}; do
          printf 'CRITEST=/payload/bin/critest CRITEST_IMAGES=/payload/critest PARALLEL=1 step "critest" /payload/critest.sh %s' "$handler"
          printf ' %q' "$@"
          echo
        done
        ;;
      kubelet)
        program=$(command -v "${KUBELET:-kubelet}") || { echo "kubelet is not there" >&2 && exit 2; }
        cp "$program" "$payload/bin/kubelet"
        cp scripts/vm-kubelet{,-pods}.sh "$payload/"
        images
        for handler in ${WHARF_HANDLERS:-builtin runc crun}; do printf 'step "kubelet, %s" /payload/vm-kubelet.sh %s\n' "$handler" "$handler"; done
        ;;
      node) printf 'step "a node" /payload/vm-node.sh' ;;
      *) echo "VM_STEPS: \"$one\" is none of cgroupfs, systemd, node, selinux, critest and kubelet" >&2 && exit 2 ;;
    esac
    echo
  done
} >"$payload/steps"
mke2fs -q -t ext4 -O ^has_journal -d "$payload" "$run/payload.ext4" 2G

accelerator=(-accel "tcg,thread=multi" -cpu max)
: >"$run/code"
tail -f "$run/output" --retry 2>/dev/null &
tail=$!
timeout --foreground "$limit" qemu-system-x86_64 -machine q35 "${accelerator[@]}" -smp 2 -m "${VM_MEMORY:-4096}" \
  -nodefaults -no-user-config -display none -no-reboot -snapshot \
  -kernel "$vm/vmlinuz" -initrd "$vm/initrd" \
  -append "console=ttyS0 root=/dev/vda quiet panic=-1 security=${lsm:-apparmor} selinux=1 enforcing=0" \
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
