#!/usr/bin/env bash
# Measures Wharf beside Debian's containerd, with runc and crun: same machine, same client, same images, turn by turn.
#   scripts/bench.sh WHARF [reads|profile] [arguments of the bench program, for example --rounds 5]
# Wharf runs twice: with its built-in network (endpoints wharf, wharf-runc and wharf-crun, by handler), and with the CNI plugins
# that containerd has (wharf-cni). BENCH_ENDPOINTS="wharf containerd" takes only some of them.
# With `reads`: how long lists and statuses take with 1,000 containers, while others come and go; Wharf has one more, which
# is stuck in a file system that does not answer.
# With `profile`: where the time of each call goes.
# Each daemon has its own state; both live in namespaces and cgroups of their own, so that the machine's stay as they are.
set -euo pipefail

if [ "${BENCH_INSIDE:-}" != 1 ]; then
  wharf=$(readlink -f "${1:?usage: bench.sh WHARF [arguments]}")
  shift
  here=$(cd "$(dirname "$0")/.." && pwd)
  "$here/scripts/setup.sh" bench >/dev/null
  export BENCH_INSIDE=1 BENCH_PROGRAM="${BENCH_PROGRAM:-$here/target/release/bench}"
  exec "$(dirname "$BENCH_PROGRAM")/lab" run "bench-$$" "$(readlink -f "$0")" "$wharf" "$@"
fi

wharf=$1
shift
dir=$(mktemp -d /tmp/wb.XXXXXX)
# In memory, as on any machine: it is the lab's own /run, and ends with it.
run=/run/bench
# What a failure has left is unmounted first; the lab ends the processes.
trap 'awk -v dir="$dir/" "index(\$5, dir) == 1 { print \$5 }" /proc/self/mountinfo | tac | xargs -r umount --lazy; rm -rf "$dir"' EXIT
mode=()
endpoints=${BENCH_ENDPOINTS:-wharf wharf-runc wharf-crun wharf-cni containerd containerd-crun}
if [ "${1:-}" = reads ]; then
  shift
  mode=(reads --stuck "wharf=$dir/stuck")
  BENCH_LAYERS=1 BENCH_MIB=1
  endpoints=${BENCH_ENDPOINTS:-wharf containerd}
fi
if [ "${1:-}" = profile ]; then
  shift
  mode=(profile)
  endpoints=${BENCH_ENDPOINTS:-wharf}
fi
ip link set lo up
mkdir -p "$run" "$dir/work" "$dir/cni" "$dir/storage"

rounds=3
[[ " $* " =~ " --rounds "([0-9]+) ]] && rounds=${BASH_REMATCH[1]}
# Of the large image one for each round, of so many MiB.
"$BENCH_PROGRAM" make-images "$dir/storage" "${BENCH_LAYERS:-6}" "${BENCH_MIB:-300}" "$rounds"
cat >"$dir/registry.yml" <<YML
version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: $dir/storage }, maintenance: { readonly: { enabled: true } } }
http: { addr: "127.0.0.1:5000" }
YML
OTEL_TRACES_EXPORTER=none docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &

cat >"$dir/cni/10-bench.conflist" <<JSON
{ "cniVersion": "1.0.0", "name": "bench", "plugins": [
  { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
    "ipam": { "type": "host-local", "dataDir": "$dir/ipam",
              "ranges": [[{ "subnet": "10.89.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } } ] }
JSON
cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd/root"
state = "$run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "$run/containerd.sock"
[ttrpc]
address = "$run/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "127.0.0.1:5000/pause:latest"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$dir/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
# Without a table of options the shim of Debian's 1.6 waits for them and fails.
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
BinaryName = "/usr/bin/crun"
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."127.0.0.1:5000"]
endpoint = ["http://127.0.0.1:5000"]
TOML
for network in builtin cni; do
  cat >"$dir/wharf-$network.toml" <<TOML
state_dir = "$dir/wharf-$network"
run_dir = "$run/$network"
network = "$network"
[cni]
conf_dir = "$dir/cni"
bin_dirs = ["/usr/lib/cni"]
[runtimes.runc]
path = "/usr/sbin/runc"
[runtimes.crun]
path = "/usr/bin/crun"
TOML
done

# start NAME SOCKET COMMAND...: sets pid.
daemons=()
sockets=()
start() {
  local name=$1 socket=$2
  shift 2
  "$@" >"$dir/$name.log" 2>&1 &
  pid=$!
  daemons+=("$pid")
  sockets+=("$socket")
}
peers=()
on_cni=(--cni "$dir/cni/10-bench.conflist")
builtin=
containerd=
for name in $endpoints; do
  case $name in
    wharf | wharf-runc | wharf-crun)
      socket=$run/builtin/wharf.sock
      if [ -z "$builtin" ]; then
        start wharf "$socket" "$wharf" serve --config "$dir/wharf-builtin.toml"
        builtin=$pid
        peers+=(--daemon-pid "$name=$builtin")
      fi
      peers+=(--endpoint "$name=unix://$socket")
      [ "$name" = wharf ] || peers+=(--handler "$name=${name#wharf-}")
      ;;
    wharf-cni)
      start wharf-cni "$run/cni/wharf.sock" "$wharf" serve --config "$dir/wharf-cni.toml"
      peers+=(--endpoint "$name=unix://$run/cni/wharf.sock" --daemon-pid "$name=$pid")
      on_cni+=(--on-cni "$name")
      ;;
    containerd | containerd-crun)
      if [ -z "$containerd" ]; then
        start containerd "$run/containerd.sock" containerd --config "$dir/containerd.toml"
        containerd=$pid
        peers+=(--daemon-pid "$name=$pid")
      fi
      on_cni+=(--on-cni "$name")
      peers+=(--peer "$name=unix://$run/containerd.sock")
      [ "$name" = containerd ] || peers+=(--handler "$name=crun")
      ;;
    *) echo "no endpoint is called $name" >&2 && exit 2 ;;
  esac
done
for socket in "${sockets[@]}"; do
  for _ in $(seq 200); do
    "$wharf" --endpoint "unix://$socket" ps >/dev/null 2>&1 && continue 2
    sleep 0.1
  done
  echo "nothing answers at $socket" >&2
  tail -n 20 "$dir"/*.log >&2
  exit 1
done

[ "${mode[0]:-}" != reads ] || on_cni=()
status=0
"$BENCH_PROGRAM" "${mode[@]}" "${peers[@]}" "${on_cni[@]}" \
  --image 127.0.0.1:5000/busybox:latest --pull 127.0.0.1:5000/big "$@" || status=$?
[ $status = 0 ] || tail -n 30 "$dir"/*.log >&2
kill "${daemons[@]}" 2>/dev/null || true
wait "${daemons[@]}" 2>/dev/null || true
exit $status
