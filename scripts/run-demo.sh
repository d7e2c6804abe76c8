#!/usr/bin/env bash
# The tour: a registry, a daemon of its own, one pod from pull to remove, and a look at what is left (nothing).
#   scripts/run-demo.sh WHARF [IMAGE]
# Without IMAGE an image is made from Debian's busybox-static and served by docker-registry on 127.0.0.1.
set -euo pipefail

wharf=$(readlink -f "${1:?usage: run-demo.sh WHARF [IMAGE]}")
image=${2:-}
if [ "$(id -u)" != 0 ]; then
  echo "The daemon needs root: sudo make run" >&2
  exit 1
fi

dir=$(mktemp -d /tmp/wharf.XXXXXX)
daemon='' registry='' bridge="whd$$"

finish() {
  status=$?
  set +e
  if [ $status -ne 0 ]; then
    echo "--- The tour failed. The daemon's log:" >&2
    tail -n 40 "$dir/wharf.log" >&2
  fi
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; }
  [ -z "$registry" ] || { kill "$registry" 2>/dev/null; wait "$registry" 2>/dev/null; }
  ip link delete "$bridge" 2>/dev/null
  rm -rf "$dir"
  exit $status
}
trap finish EXIT

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
show() { say "$@"; "$@"; }
# The commands look as a person types them; the endpoint is in the environment.
wharf() { "$wharf" "$@"; }
export WHARF_ENDPOINT="unix://$dir/run/wharf.sock"

free_port() {
  # The kernel's table of listening ports, in hexadecimal.
  local port
  for port in $(seq 5000 5999); do
    if ! grep -qi "$(printf ':%04X 00000000:0000 0A' "$port")" /proc/net/tcp; then
      echo "$port"
      return
    fi
  done
}

serve_busybox() {
  local port layout=$dir/layout
  port=$(free_port)
  umoci init --layout "$layout"
  umoci new --image "$layout:latest"
  umoci insert --image "$layout:latest" "$(command -v busybox)" /bin/busybox
  mkdir -p "$dir/links"
  busybox --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s /bin/busybox "$dir/links/$applet"
  done
  # One layer for all links: an insert of the directory would hide /bin/busybox in none, it only adds.
  umoci insert --image "$layout:latest" "$dir/links" /usr/bin
  umoci config --image "$layout:latest" --config.cmd /usr/bin/sh \
    --config.env PATH=/usr/local/bin:/usr/bin:/bin --author wharf
  cat >"$dir/registry.yml" <<YML
version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: $dir/registry } }
http: { addr: "127.0.0.1:$port" }
YML
  OTEL_TRACES_EXPORTER=none docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
  registry=$!
  skopeo copy --quiet --insecure-policy --retry-times 5 --dest-tls-verify=false \
    "oci:$layout:latest" "docker://127.0.0.1:$port/busybox:latest"
  image=127.0.0.1:$port/busybox:latest
}

# What of the machine bears a name of this tour: its directory, its bridge, the ids of its pod and container.
survey() {
  {
    awk '{ print "mount " $5 }' /proc/self/mountinfo
    ip -o link | awk -F': ' '{ print "link " $2 }'
    find /sys/fs/cgroup -mindepth 1 -type d \( -path '*wharf*' \) 2>/dev/null | sed 's/^/cgroup /'
    nft list tables 2>/dev/null | sed 's/^/firewall /' || true
    # A pinned namespace is a mount of nsfs (above); any other is held by a process.
    for process in /proc/[0-9]*; do
      line=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline") || continue
      case $line in *"wharf monitor"* | *"wharf serve"*) echo "process ${process#/proc/} $line" ;; esac
    done
  } | grep -E "$names" | sort -u
}

if [ -z "$image" ]; then
  say "(make an image from busybox-static and serve it on 127.0.0.1)"
  serve_busybox
fi

cat >"$dir/wharf.toml" <<TOML
state_dir = "$dir/state"
run_dir = "$dir/run"
[builtin_network]
bridge = "$bridge"
subnet = "10.122.0.0/16"
TOML

say "wharf serve --config $dir/wharf.toml &"
"$wharf" serve --config "$dir/wharf.toml" >"$dir/wharf.log" 2>&1 &
daemon=$!
for _ in $(seq 300); do
  if "$wharf" ps >/dev/null 2>&1; then
    ready=1
    break
  fi
  kill -0 "$daemon" || exit 1
  sleep 0.05
done
[ "${ready:-}" = 1 ] || { echo "the daemon does not answer" >&2; exit 1; }

show wharf pull "$image"
show wharf images
say "wharf run -d --name hello $image sh -c '...'"
# shellcheck disable=SC2016 # the container's shell expands it
wharf run -d --name hello "$image" \
  sh -c 'echo "Hello from $(hostname), process $$"; trap "exit 0" TERM; while :; do sleep 1; done'
show wharf pods
show wharf ps
for _ in $(seq 100); do
  [ -z "$(wharf logs hello)" ] || break
  sleep 0.05
done
# Devices and cgroups are named after the beginning of an id.
names="$dir|$bridge"
for id in $(wharf ps --quiet) $(wharf pods --quiet); do
  names+="|$id"
done
[ -n "$(survey)" ]
show wharf logs hello
[ -n "$(wharf logs hello)" ]
show wharf exec hello ps
show wharf exec hello ip address show
show wharf stop hello
show wharf ps -a
show wharf rm hello
show wharf rmi "$image"

say "kill \$(pidof wharf); what is left?"
kill "$daemon"
wait "$daemon"
daemon=
if ! left=$(survey | grep .); then
  echo "nothing: no process, mount, network device, namespace or cgroup."
else
  echo "$left"
  exit 1
fi
