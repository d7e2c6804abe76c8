#!/usr/bin/env bash
# Runs in the test machine: Wharf as a node has it, its unit under systemd, with each runtime handler. Says what holds, line
# by line, and fails with what does not. Cgroup v2, the systemd driver.
set -uo pipefail
export WHARF_DIR=/payload
# shellcheck source=scripts/vm-lib.sh
. "$(dirname "$0")/vm-lib.sh"
pid_of() { wharf inspect "$1" | jq -r '.. | .pid? // empty' | grep -m1 '^[1-9]'; }
id_of() { wharf inspect "$1" | jq -r ".. | .id? // empty" | grep -Em1 "^[0-9a-f]{64}$"; }
show() { systemctl show -P "$2" "$1"; }
# In the journal, at last.
# shellcheck disable=SC2317
told() { for _ in $(seq 100); do journalctl -u wharf --no-pager | grep -qF "$1" && return; sleep 0.2; done; false; }
limit() { cat "/sys/fs/cgroup$(cgroup_of "$1")/$2"; }

# As the installer's image has it.
node=$(mktemp -d)
cp $WHARF_DIR/bin/wharf $WHARF_DIR/deploy/wharf.service $WHARF_DIR/deploy/kubernetes/{node.sh,wharf.toml} "$node"
install -d /etc/wharf
cat >/etc/wharf/wharf.toml <<'END'
[runtimes.runc]
path = "/usr/sbin/runc"
[runtimes.crun]
path = "/usr/bin/crun"
END
holds "it is installed, starts and answers" "$node/node.sh" install
holds "it is active" systemctl is-active wharf
wharf doctor
holds "cgroups are systemd's" bash -c "wharf doctor | grep -A1 'cgroup driver' | grep -q systemd"

files=$(mktemp -d)
install -D /bin/busybox "$files/bin/busybox"
for name in sh sleep tail cat echo mknod head; do ln "$files/bin/busybox" "$files/bin/$name"; done
mkdir -p "$files"/{tmp,proc,dev,sys,etc}
tar -C "$files" -c . | wharf import - busybox:test >/dev/null

for handler in builtin runc crun; do
  holds "$handler: a container runs" wharf run -d --name "c-$handler" --runtime "$handler" -m 64m --cpus 0.5 busybox:test sleep 100000
  pid=$(pid_of "c-$handler")
  id=$(id_of "c-$handler")
  scope=wharf-$id.scope
  equal "$handler: it is in its scope" "$(cgroup_of "$pid")" "/wharf.slice/$scope"
  equal "$handler: systemd knows its slice" "$(show "$scope" Slice)" wharf.slice
  equal "$handler: systemd delegates it" "$(show "$scope" Delegate)" yes
  equal "$handler: systemd knows its memory" "$(show "$scope" MemoryMax)" $((64 << 20))
  equal "$handler: systemd knows its CPU" "$(show "$scope" CPUQuotaPerSecUSec)" 500ms
  systemctl daemon-reload
  equal "$handler: limits at the start stay over a reload of systemd" "$(limit "$pid" memory.max) $(limit "$pid" cpu.max)" "$((64 << 20)) 50000 100000"
  equal "$handler: the kernel knows its memory" "$(limit "$pid" memory.max)" $((64 << 20))
  holds "$handler: limits change" wharf update -m 96m --cpus 0.75 "c-$handler"
  systemctl daemon-reload
  equal "$handler: they stay over a reload of systemd" "$(limit "$pid" memory.max) $(limit "$pid" cpu.max)" "$((96 << 20)) 75000 100000"
  equal "$handler: exec is in its cgroup" "$(wharf exec "c-$handler" cat /proc/self/cgroup)" "0::/"
  wharf exec "c-$handler" sh -c 'mknod /tmp/kmsg c 1 11; head -c1 /tmp/kmsg' >/dev/null 2>&1
  equal "$handler: devices are still refused after it" "$?" 1
  equal "$handler: the monitor's standing with the OOM killer is not the container's" "$(cat "/proc/$pid/oom_score_adj")" 0
  wharf run --name "oom-$handler" --runtime "$handler" -m 16m busybox:test tail /dev/zero >/dev/null 2>&1
  holds "$handler: lack of memory is told" bash -c "wharf inspect oom-$handler | grep -q OOMKilled"
  wharf rm -f "oom-$handler" >/dev/null
done

pids=$(for handler in builtin runc crun; do pid_of "c-$handler"; done)
# shellcheck disable=SC2317
alive() { local pid; for pid in $pids; do test -d "/proc/$pid" || return 1; done; }
monitors() { wc -l </sys/fs/cgroup/wharf.slice/wharf-monitors.scope/cgroup.procs; }
equal "monitors are in a scope of their own" "$(monitors)" 3
holds "the daemon is started anew" systemctl restart wharf
holds "containers have not noticed" alive
equal "their monitors neither" "$(monitors)" 3
holds "exec works after it" wharf exec c-builtin echo hello
systemctl stop wharf
holds "containers outlive a stop" alive
systemctl start wharf
systemctl kill -s KILL wharf
for _ in $(seq 100); do systemctl is-active -q wharf && wharf ps >/dev/null 2>&1 && break; sleep 0.2; done
holds "systemd starts it again when it is killed" systemctl is-active wharf
holds "containers outlive that too" alive

echo >>"$node/wharf"
before=$(systemctl show -P MainPID wharf)
holds "another binary is an upgrade" "$node/node.sh" install
holds "the daemon is another process" test "$before" != "$(systemctl show -P MainPID wharf)"
holds "containers outlive the upgrade" alive
holds "exec works after the upgrade" wharf exec c-runc echo hello
cp "$node/wharf" "$node/good"
# shellcheck disable=SC2016
printf '#!/bin/sh\n[ "$1" = --version ] || [ "$3" = serve ] && [ "$4" = --check ]\n' >"$node/wharf"
holds "one that does not answer is taken back" bash -c "! $node/node.sh install"
holds "and the one before serves" wharf ps
mv "$node/good" "$node/wharf"
holds "containers outlive that" alive

# A kubelet that does nothing, with kubeadm's file.
install -d /var/lib/kubelet
echo 'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///run/containerd/containerd.sock --v=2"' >/var/lib/kubelet/kubeadm-flags.env
echo 'containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock"' >/var/lib/kubelet/instance-config.yaml
cp /var/lib/kubelet/kubeadm-flags.env /root/flags
cp /var/lib/kubelet/instance-config.yaml /root/instance
systemd-run -q --unit=kubelet sleep inf
holds "kubelet is switched over" "$node/node.sh" switch
holds "by its flag" grep -q 'endpoint=unix:///run/wharf/wharf.sock --v=2' /var/lib/kubelet/kubeadm-flags.env
equal "and in kubeadm's own note" "$(cat /var/lib/kubelet/instance-config.yaml)" "containerRuntimeEndpoint: unix:///run/wharf/wharf.sock"
holds "which is enough once" "$node/node.sh" switch
holds "Wharf is not removed under kubelet" bash -c "! $node/node.sh remove"
holds "kubelet is switched back" "$node/node.sh" back
holds "to what was there" cmp /root/flags /var/lib/kubelet/kubeadm-flags.env
holds "in the note too" cmp /root/instance /var/lib/kubelet/instance-config.yaml
# Without flags, as kubeadm leaves a node from 1.34 on.
rm /var/lib/kubelet/kubeadm-flags.env
echo 'containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock"' >/var/lib/kubelet/config.yaml
holds "kubelet is switched over where it has no flags" "$node/node.sh" switch
equal "by its configuration" "$(cat /var/lib/kubelet/config.yaml)" "containerRuntimeEndpoint: unix:///run/wharf/wharf.sock"
holds "and back" "$node/node.sh" back
equal "to what it said" "$(cat /var/lib/kubelet/config.yaml)" 'containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock"'
holds "Wharf is not removed under its pods" bash -c "! $node/node.sh remove"

cat >>/etc/wharf/wharf.toml <<'END'
[log]
level = "debug"
END
holds "the configuration is read again" systemctl reload wharf
holds "what changed is told" told log.level
cp /etc/wharf/wharf.toml /root/good.toml
echo 'nonsense = 1' >/etc/wharf/wharf.toml
systemctl reload wharf
holds "a wrong one is refused with its line" told wharf.toml:1
holds "and the daemon goes on" wharf ps
cp /root/good.toml /etc/wharf/wharf.toml

for handler in builtin runc crun; do holds "$handler: removed" wharf rm -f "c-$handler"; done
equal "no scope is left" "$(systemctl list-units --all --no-legend 'wharf-*.scope' | grep -vc monitors)" 0
equal "no unit has failed" "$(systemctl list-units --failed --no-legend 'wharf*')" ""
systemd-analyze security --no-pager wharf | tail -1
[ $failed = 0 ] || journalctl -u wharf --no-pager | tail -60
PURGE=1 holds "it is removed" "$node/node.sh" remove
holds "and nothing of it is left" bash -c '! ls -d /usr/local/bin/wharf /etc/wharf /var/lib/wharf /run/wharf 2>/dev/null'
echo "$((failed)) failed"
exit $((failed > 0))
