#!/usr/bin/env bash
# Runs in the test machine: kubelet itself, alone on its node, with pods of many shapes (vm-kubelet-pods.sh), against Wharf's
# unit with the systemd driver. Says what holds, line by line. The argument is the default handler.
# shellcheck disable=SC2317 # Functions are called by others' arguments.
set -uo pipefail
here=$(dirname "$0")
# shellcheck source=scripts/vm-lib.sh
. "$here/vm-lib.sh"
handler=${1:-builtin}
export WHARF_DIR=/payload
kubernetes=/etc/kubernetes
manifests=$kubernetes/manifests
shared=/srv/shared
tree=/srv/tree
two=/srv/two
# shellcheck source=scripts/vm-kubelet-pods.sh
. "$here/vm-kubelet-pods.sh"

# --- asking kubelet

# What its port without rights gives out.
get() { busybox wget -qO- "http://127.0.0.1:10255$1"; }
# api METHOD PATH: its other port, which speaks TLS.
api() {
  printf '%s %s HTTP/1.0\r\nContent-Length: 0\r\n\r\n' "$1" "$2" |
    timeout 60 openssl s_client -quiet -connect 127.0.0.1:10250 2>/dev/null | sed '1,/^\r$/d'
}
# frame CHANNEL [TEXT]: a message of a WebSocket to kubelet, masked by zeros.
frame() {
  # shellcheck disable=SC2059
  printf "\\x82\\x$(printf %02x $((0x81 + ${#2})))\\x00\\x00\\x00\\x00\\x$(printf %02x "$1")"
  printf %s "${2:-}"
}
# stream PATH: a WebSocket with the frames of stdin; what comes from there, without zeros.
stream() {
  {
    printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n' "$1"
    printf 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n'
    cat
  } | timeout 60 openssl s_client -quiet -connect 127.0.0.1:10250 2>/dev/null | tr -d '\0'
}
# status POD FILTER: jq's answer about a pod.
status() { get /pods | jq -r --arg name "$1-wharf-vm" ".items[] | select(.metadata.name == \$name) | $2"; }
# is POD CONDITION
is() { get /pods | jq -e --arg name "$1-wharf-vm" "[.items[] | select(.metadata.name == \$name)][0] | $2" >/dev/null || { status "$1" .status && false; }; }
# A container's, by its name.
container() { echo "([.status.containerStatuses[]?, .status.initContainerStatuses[]? | select(.name == \"$1\")][0])"; }
ready() { is "$1" '[.status.conditions[]? | select(.type == "Ready" and .status == "True")] | length == 1'; }
logs() { api GET "/containerLogs/default/$1-wharf-vm/$2"; }
# said POD CONTAINER TEXT: in its log.
said() { logs "$1" "$2" | grep -F -- "$3" || { logs "$1" "$2" | tail -20 && false; }; }
cid() { status "$1" "$(container "${2:-c}").containerID" | sed 's|.*//||'; }
cpid() { wharf inspect "$(cid "$@")" | jq -r '.. | .pid? // empty' | grep -m1 '^[1-9]'; }
limit() { cat "/sys/fs/cgroup$(cgroup_of "$(cpid "$1" "${3:-c}")")/$2"; }
pod_limit() { cat "/sys/fs/cgroup$(dirname "$(cgroup_of "$(cpid "$1" "${3:-c}")")")/$2"; }
limited() { test "$(limit "$1" "$2")" = "$3"; }
uid() { status "$1" .metadata.uid; }
# What a command of a container has written; its words have no spaces.
run() { api POST "/run/default/$1-wharf-vm/$2?cmd=$(jq -rn --arg text "$3" '$text | @uri')"; }

# --- the node

# kubelet_config GATES: written before each of its starts.
kubelet_config() {
  # What deploy/ says, and more. Its driver is made wrong on purpose: what Wharf answers counts.
  sed -e 's/^cgroupDriver: .*/cgroupDriver: cgroupfs/' -e '/^# staticPodPath/,$s/^# //' $WHARF_DIR/deploy/kubelet.yaml >$kubernetes/kubelet.yaml
  cat >>$kubernetes/kubelet.yaml <<END
memorySwap: {swapBehavior: LimitedSwap}
readOnlyPort: 10255
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
evictionPressureTransitionPeriod: 10s
containerLogMaxSize: 64Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
shutdownGracePeriod: 20s
shutdownGracePeriodCriticalPods: 5s
imageMinimumGCAge: 1s
imageGCHighThresholdPercent: 2
imageGCLowThresholdPercent: 1
podPidsLimit: 100
cpuManagerPolicy: static
kubeReserved: {cpu: 500m}
allowedUnsafeSysctls: ["kernel.shm_rmid_forced"]
memoryReservationPolicy: TieredReservation
featureGates: {ContainerStopSignals: true, MemoryQoS: true$1}
END
}
prepare() {
  fallocate -l 256M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap
  echo 8 >/proc/sys/vm/nr_hugepages
  mkdir -p $shared $tree/below $two $manifests /var/lib/kubelet/seccomp /etc/wharf /etc/cni/net.d
  echo file >$shared/file
  mount -t tmpfs below $tree/below
  echo '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}' >/var/lib/kubelet/seccomp/nomkdir.json
  printf '%s\n' 'profile wharf-vm-test flags=(attach_disconnected,mediate_deleted) {' '  file,' '  deny /denied w,' '  signal,' '}' | apparmor_parser -r
  cat >/etc/wharf/wharf.toml <<END
default_runtime = "$handler"
[runtimes.runc]
path = "/usr/sbin/runc"
[runtimes.crun]
path = "/usr/bin/crun"
[registries."registry.k8s.io"]
mirrors = ["127.0.0.1:5000"]
[registries."gcr.io"]
mirrors = ["127.0.0.1:5000"]
END
  printf '%s\n' 'version: 0.1' 'log: { level: warn }' \
    'storage: { filesystem: { rootdirectory: /payload/critest/storage }, maintenance: { readonly: { enabled: true } } }' \
    'http: { addr: "127.0.0.1:5000" }' >/root/registry.yml
  systemd-run -q --unit=registry -E OTEL_TRACES_EXPORTER=none docker-registry serve /root/registry.yml
  cat >/etc/systemd/system/kubelet.service <<END
[Unit]
After=wharf.service
[Service]
ExecStart=/payload/bin/kubelet --config=$kubernetes/kubelet.yaml --hostname-override=wharf-vm --v=2
Restart=always
RestartSec=1
END
  node=$(mktemp -d)
  cp $WHARF_DIR/bin/wharf $WHARF_DIR/deploy/wharf.service $WHARF_DIR/deploy/kubernetes/{node.sh,wharf.toml} "$node"
  systemctl daemon-reload
}
well() { test "$(get /healthz)" = ok; }
# Containers that run, with their restarts: what must not change.
running() { get /pods | jq -r '.items[] | .metadata.name as $pod | .status.containerStatuses[]? | select(.state.running) | "\($pod) \(.name) \(.containerID) \(.restartCount)"' | grep -vE '^(crash|unwell|hooks|slowprobe)-' | sort; }
unchanged() {
  local now
  now=$(running)
  diff <(echo "$before") <(echo "$now")
}

# --- what must be so

check_resources() {
  local name scope
  for name in guaranteed burstable besteffort exclusive hugepages podlevel; do comes 120 "pod $name is ready" ready $name; done
  uid=$(uid guaranteed | tr - _)
  equal "a guaranteed container is in its scope" "$(cgroup_of "$(cpid guaranteed)")" "/kubepods.slice/kubepods-pod$uid.slice/wharf-$(cid guaranteed).scope"
  uid=$(uid burstable | tr - _)
  equal "a burstable one too" "$(cgroup_of "$(cpid burstable)")" "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$uid.slice/wharf-$(cid burstable).scope"
  uid=$(uid besteffort | tr - _)
  equal "and one of best effort" "$(cgroup_of "$(cpid besteffort)")" "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod$uid.slice/wharf-$(cid besteffort).scope"
  equal "guaranteed: memory" "$(limit guaranteed memory.max)" 33554432
  equal "guaranteed: CPU" "$(limit guaranteed cpu.max)" "10000 100000"
  equal "guaranteed: no swap" "$(limit guaranteed memory.swap.max)" 0
  equal "guaranteed: standing with the OOM killer" "$(cat "/proc/$(cpid guaranteed)/oom_score_adj")" -997
  equal "guaranteed: memory of the pod" "$(pod_limit guaranteed memory.max)" 33554432
  equal "guaranteed: all of it is ended together" "$(limit guaranteed memory.oom.group)" 1
  equal "guaranteed: memory that is kept for it" "$(limit guaranteed memory.min)" 33554432
  equal "burstable: memory" "$(limit burstable memory.max)" 67108864
  equal "burstable: memory.high of MemoryQoS" "$(($(limit burstable memory.high) < 67108864))" 1
  equal "burstable: no swap either, as static pods are critical" "$(limit burstable memory.swap.max)" 0
  equal "besteffort: standing with the OOM killer" "$(cat "/proc/$(cpid besteffort)/oom_score_adj")" 1000
  equal "besteffort: least share of CPUs" "$(limit besteffort cpu.weight)" 1
  equal "processes of a pod" "$(pod_limit besteffort pids.max)" 100
  scope=wharf-$(cid burstable).scope
  equal "systemd knows the memory" "$(systemctl show -P MemoryMax "$scope")" 67108864
  equal "exclusive: a CPU of its own" "$(limit exclusive cpuset.cpus)" 1
  comes 60 "others are kept off it" limited burstable cpuset.cpus 0
  equal "hugepages" "$(limit hugepages hugetlb.2MB.max)" 4194304
  equal "a pod's own limits" "$(pod_limit podlevel memory.max a) $(pod_limit podlevel cpu.max a)" "67108864 20000 100000"
  comes 60 "lack of memory is told" is oom "$(container c).state.terminated | .reason == \"OOMKilled\" and .exitCode == 137"
}
check_order() {
  comes 60 "init containers come first, in their order" said init c "two"
  comes 120 "a sidecar serves and ends with its pod" is sidecar '.status.phase == "Succeeded"'
  holds "and was there for the container" said sidecar c served
  comes 60 "containers of a pod share its network" said several client served
  comes 60 "several containers are ready" ready several
  comes 120 "probes by HTTP, TCP, exec and gRPC succeed" ready probes
  comes 60 "a container that is not well is started anew" is unwell "$(container c).restartCount > 0"
  holds "a slow exec probe is not ready" is slowprobe "$(container c).ready == false and $(container c).restartCount == 0"
  comes 60 "postStart has run" grep -q postStart $shared/hooks
  comes 60 "a container whose hook fails is told" is hooks "$(container bad) | .restartCount > 0 or .state.waiting.reason == \"CrashLoopBackOff\" or .lastState.terminated != null"
  comes 60 "crashes are counted" is crash "$(container c).restartCount > 1"
  comes 60 "and wait" is crash "$(container c).state.waiting.reason == \"CrashLoopBackOff\""
  holds "the last end is told" is crash "$(container c).lastState.terminated.exitCode == 3"
  comes 60 "a pod's deadline ends it" is deadline '.status.phase == "Failed" and .status.reason == "DeadlineExceeded"'
  comes 60 "a container's message is told" is ended "$(container c).state.terminated | .message == \"told\" and .exitCode == 0 and .reason == \"Completed\""
  comes 60 "or the end of its log" is fallback "$(container c).state.terminated | .message == \"last words\\n\" and .exitCode == 7 and .reason == \"Error\""
}
check_security() {
  comes 60 "user, group and groups" said user c "id 1000:2000:2000 3000 4000"
  for text in $'Seccomp:\t2' $'NoNewPrivs:\t1' $'CapBnd:\t0000000000000400' readonly "owner 3000:2777" "group 3000" $'0\t100'; do holds "user: $text" said user c "$text"; done
  comes 60 "AppArmor: a profile without being asked" said apparmor default "wharf-default (enforce)"
  comes 60 "AppArmor: the runtime's" said apparmor runtime "wharf-default (enforce)"
  comes 60 "AppArmor: none" said apparmor unconfined unconfined
  comes 60 "AppArmor: the node's" said apparmor local denied
  comes 60 "seccomp: the node's profile" said seccomp c forbidden
  comes 60 "privileged: capabilities" said privileged c $'CapEff:\t000001ffffffffff'
  for text in devices mounted; do holds "privileged: $text" said privileged c $text; done
  comes 60 "host: its name" said host c wharf-vm
  for name in net pid ipc; do holds "host: $name" said host c "$(readlink /proc/1/ns/$name)"; done
  comes 60 "shared processes are seen" said shared b sees
  comes 60 "user namespace: a volume is writable" said userns c writes
  holds "user namespace: the pod's root is nobody" bash -c "! grep -q '^ *0 *0 ' /proc/$(cpid userns)/uid_map"
  holds "user namespace: a volume's owners" said userns c "owner 0:3000"
}
check_world() {
  comes 60 "volumes: an image" said volumes c "k8s-staging-cri-tools/test-image-1:latest"
  for text in "/disk ext4 rw" "/mem tmpfs rw" "/sub ext4 rw" "/ro ext4 ro" "/image overlay ro" "/down tmpfs ro" file; do holds "volumes: $text" said volumes c "$text"; done
  holds "volumes: read-only" bash -c "$(declare -f logs api); logs volumes c | tr -d '\r' | grep -qx ro"
  holds "volumes: memory has its limit" said volumes c 16384
  comes 60 "a container's mount comes to the node" test -e $two/made/here
  mkdir -p $tree/below/late && mount -t tmpfs late $tree/below/late && touch $tree/below/late/here
  comes 60 "and the node's to a container" said propagation c arrived
  for text in given "nameserver 192.0.2.53" "search example.test" "options ndots:3" $'192.0.2.7\talias.test' "env names-wharf-vm wharf-vm 33554432"; do comes 30 "names: $text" said names c "$text"; done
  comes 60 "a port of the node leads to a pod" busybox wget -qO- http://127.0.0.1:18080/
  comes 60 "an image that is nowhere" is nosuchimage "$(container c).state.waiting | .reason == \"ErrImagePull\" or .reason == \"ImagePullBackOff\""
  comes 60 "a registry that is not there" is noregistry "$(container c).state.waiting | .reason == \"RegistryUnavailable\" or .reason == \"ImagePullBackOff\""
  comes 60 "an image that may not be pulled" is never "$(container c).state.waiting.reason == \"ErrImageNeverPull\""
  comes 60 "a name that is none" is badname "$(container c).state.waiting.reason == \"InvalidImageName\""
  comes 60 "a command that is not there" is nocommand "$(container c).state.terminated | .reason == \"StartError\" and .exitCode == 128"
  comes 60 "root where none may be" is nonroot "$(container c).state.waiting.reason == \"CreateContainerConfigError\""
  comes 60 "logs are rotated" bash -c "ls /var/log/pods/default_flood-wharf-vm_*/c/ | grep -q '^0.log.2'"
  comes 120 "and go on" said flood c end
  holds "old ones are few" bash -c "test \$(ls /var/log/pods/default_flood-wharf-vm_*/c/ | wc -l) -le 4"
  equal "the log's end is asked for" "$(api GET '/containerLogs/default/flood-wharf-vm/c?tailLines=1' | tr -d '\r\n')" end
}
check_streams() {
  equal "run answers" "$(run besteffort c 'echo hello' | tr -d '\r\n')" hello
  holds "exec gives out what is written" bash -c "$(declare -f stream); stream '/exec/default/besteffort-wharf-vm/c?command=echo&command=hello&output=1&error=1' </dev/null | grep -aq hello"
  holds "exec tells the exit code" bash -c "$(declare -f stream); stream '/exec/default/besteffort-wharf-vm/c?command=false&output=1&error=1' </dev/null | grep -aq '\"reason\":\"NonZeroExitCode\"'"
  holds "exec takes input" bash -c "$(declare -f stream frame); { sleep 3; frame 0 \$'abc\n'; } | stream '/exec/default/besteffort-wharf-vm/c?command=head&command=-n1&input=1&output=1&error=1' | grep -aq abc"
  holds "attach to a terminal" bash -c "$(declare -f stream frame); { sleep 3; frame 0 \$'one\n'; sleep 3; } | timeout 15 cat | stream '/attach/default/tty-wharf-vm/c?input=1&output=1&tty=1' | grep -aqm1 'got one'"
  holds "attach to an input that comes once" bash -c "$(declare -f stream frame); { sleep 3; frame 0 \$'two\n'; sleep 3; } | stream '/attach/default/stdin-wharf-vm/c?input=1&output=1&error=1' | grep -aqm1 'got two'"
  holds "a port is forwarded" bash -c "$(declare -f stream frame); { sleep 3; frame 0 \$'GET / HTTP/1.0\r\n\r\n'; sleep 3; } | stream '/portForward/default/several-wharf-vm?port=80' | grep -aq '200 OK'"
}
# check_stats NAME [PATH]: what kubelet tells of a pod, and what only this source of figures knows.
check_stats() {
  local summary path
  summary=$(get /stats/summary)
  for path in "${@:2}" .cpu.usageCoreNanoSeconds .memory.workingSetBytes '["ephemeral-storage"].usedBytes' '.containers[0].rootfs.usedBytes' '.containers[0].logs.usedBytes' '.containers[0].memory.rssBytes' '.containers[0].swap.swapUsageBytes'; do
    holds "$1: summary has $path" jq -e "[.pods[] | select(.podRef.name == \"burstable-wharf-vm\")][0] | ${path/#[/.[} != null" <<<"$summary"
  done
  holds "$1: summary has the volumes" jq -e '[.pods[] | select(.podRef.name == "volumes-wharf-vm")][0].volume | length >= 2' <<<"$summary"
  holds "$1: summary has the images' file system" jq -e '.node.runtime.imageFs.usedBytes > 0' <<<"$summary"
  holds "$1: /metrics/resource has a container" bash -c "busybox wget -qO- http://127.0.0.1:10255/metrics/resource | grep '^container_memory_working_set_bytes' | grep -q 'pod=\"burstable-wharf-vm\"'"
  holds "$1: /metrics/cadvisor has a container's cgroup" bash -c "busybox wget -qO- http://127.0.0.1:10255/metrics/cadvisor | grep '^container_memory_usage_bytes' | grep -q '$(cid burstable)'"
}

# --- the course

prepare
holds "Wharf is installed, starts and answers" "$node/node.sh" install
kubelet_config ""
begun=$SECONDS
systemctl start kubelet
comes 120 "kubelet is well" well
# One group after the other, and without those that keep kubelet busy: the machine is emulated.
resource_pods
check_resources
order_pods
check_order
rm $manifests/{crash,unwell,slowprobe,exclusive,hugepages,oom}.yaml
security_pods
check_security
world_pods
check_world
rm $manifests/{nosuchimage,noregistry,never,badname,nonroot,nohostpath}.yaml
check_streams
echo "all pods: $((SECONDS - begun)) s"
comes 30 "figures are there" bash -c "busybox wget -qO- http://127.0.0.1:10255/stats/summary | jq -e '[.pods[] | select(.podRef.name == \"burstable-wharf-vm\")][0].memory.workingSetBytes > 0'"
check_stats "cAdvisor"
holds "metrics name a container" bash -c "busybox wget -qO- http://127.0.0.1:10255/metrics | grep -q '^kubelet_running_containers'"

before=$(running)
systemctl restart kubelet
comes 120 "kubelet is well again" well
comes 60 "after its restart all runs on" unchanged
systemctl restart wharf
comes 60 "after a restart of Wharf all runs on" unchanged
systemctl kill -s KILL wharf
comes 60 "and after its kill" wharf version
comes 60 "all runs on" unchanged
equal "exec works after it" "$(run besteffort c 'echo hello' | tr -d '\r\n')" hello
pod late <<END
containers: [{name: c, $B, $REST}]
END
comes 60 "new pods come" ready late

before=$(running)
kubelet_config ", PodAndContainerStatsFromCRI: true, EventedPLEG: true, CRIListStreaming: true"
systemctl restart kubelet
comes 120 "kubelet is well with figures, events and streamed lists of CRI" well
comes 60 "all runs on" unchanged
# Of a pod's network cAdvisor knows only with the runtimes that it has code for.
check_stats "CRI" .network.rxBytes .network.name .process_stats.process_count
holds "CRI: metrics by names" bash -c "busybox wget -qO- http://127.0.0.1:10255/metrics/cadvisor | grep '^container_memory_working_set_bytes' | grep -q 'container=\"c\".*pod=\"burstable-wharf-vm\"'"
pod evented <<END
containers: [{name: c, $B, command: [sh, -c, "sleep 2; exit 5"]}]
restartPolicy: Never
END
comes 30 "an end is noticed by its event" is evented "$(container c).state.terminated.exitCode == 5"
get /metrics | grep -E '^kubelet_evented_pleg_connection_(success|error)_count' || true
holds "a container's state is written" bash -c "$(declare -f api); api POST /checkpoint/default/guaranteed-wharf-vm/c | grep checkpoint"
comes 400 "images that nobody uses are removed" bash -c "! wharf images | grep -q test-image-2"
holds "those that are used are not" bash -c "wharf images | grep -q e2e-test-images/busybox"

rm -f $shared/hooks
rm $manifests/{hooks,stopsignal,besteffort}.yaml
comes 60 "preStop comes before TERM" bash -c "diff <(printf 'preStop\nstopped\nTERM\n') $shared/hooks"
comes 60 "a stop has the signal that was asked for" grep -qx USR1 $shared/signal
comes 60 "removed pods are gone" bash -c "! wharf ps | grep -q besteffort"
# As logind does before the machine goes down.
pod hooks <<END
containers:
  - name: c
    $B_BLOCK
    command: [sh, -c, "trap 'echo TERM >>/v/shutdown; exit' TERM; echo here; while :; do sleep 0.2; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo preStop >>/v/shutdown"]}}}
    volumeMounts: [{name: v, mountPath: /v}]
volumes: [{name: v, hostPath: {path: $shared}}]
END
comes 60 "a pod waits for the shutdown" said hooks c here
holds "kubelet holds the shutdown up" bash -c "systemd-inhibit --list --no-legend | grep kubelet"
busctl emit /org/freedesktop/login1 org.freedesktop.login1.Manager PrepareForShutdown b true
comes 60 "a shutdown ends pods in order" bash -c "diff <(printf 'preStop\nTERM\n') $shared/shutdown"
comes 60 "all of them" bash -c "test \$(wharf ps -q | wc -l) = 0"
busctl emit /org/freedesktop/login1 org.freedesktop.login1.Manager PrepareForShutdown b false

rm -f $manifests/*
systemctl restart kubelet
comes 120 "kubelet removes what is no pod any more" bash -c "test \$(wharf pods -q --state ready | wc -l) = 0"
systemctl stop kubelet
wharf ps -aq | xargs -r wharf rm -f >/dev/null
wharf pods -q | xargs -r wharf rm -f >/dev/null
equal "no scope is left" "$(systemctl list-units --all --no-legend 'wharf-*.scope' | grep -vc monitors)" 0
equal "no container's mount is left" "$(grep -c /var/lib/wharf/pods /proc/mounts)" 0
holds "fsck finds nothing" wharf fsck
equal "no unit of Wharf's has failed" "$(systemctl list-units --failed --no-legend 'wharf*')" ""
echo "== kubelet's errors and warnings, and how often"
journalctl -u kubelet -o cat --no-pager | grep -oE '[EW][0-9]{4} [0-9:.]+ .*' | sed -E 's/^(.)[0-9]{4} [0-9:.]+ +[0-9]+ /\1 /; s/[0-9a-f]{64}/ID/g; s/[0-9a-f-]{36}/UID/g; s/[0-9a-f]{32}/UID/g' | sort | uniq -c | sort -rn | cut -c1-420 | head -"${VM_KUBELET_LOG:-40}"
echo "== Wharf's"
journalctl -u wharf -o cat --no-pager | grep -E 'WARN|ERROR' | sed -E 's/[0-9a-f]{64}/ID/g; s/^[^ ]* +//' | sort | uniq -c | sort -rn | cut -c1-420 | head -30
umount -R $tree/below $two/made 2>/dev/null
swapoff /swap
PURGE=1 holds "Wharf is removed" "$node/node.sh" remove
rm -rf /var/lib/kubelet
systemctl stop registry
echo "$failed failed"
exit $((failed > 0))
