#!/usr/bin/env bash
# Runs critest, the conformance tests of CRI, against a daemon of its own.
#   ./critest.sh [builtin|runc|crun|all] [critest's own flags, for example --websocket-exec --ginkgo.focus=PodSandbox]
# critest is $CRITEST or on PATH (it is part of cri-tools); `ginkgo`, which it needs to run specs in parallel, is $GINKGO or
# on PATH. Daemon, registry and tests live in namespaces of their own and leave nothing behind. The images that critest
# names are made here (e2e/src/fixtures/critest.rs) and served as mirrors of the public registries. Specs run in random
# order, in parallel, without retries. The environment: PARALLEL (4), SEED, WHARF_BIN, CRITEST_LOGS (a directory that gets
# report and logs), CRITEST_IMAGES (a directory with the images, made before: `storage`, and what `lab critest-images` said in
# `digest`), CRITEST_OPTIONAL=1 (its absence is no failure).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# The public image that one spec pulls by its digest can't be made here: a digest names bytes. In a copy of critest this one
# is replaced by that of the image made here.
public_digest=9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf

inside() {
  local handler=$1 dir=$2
  shift 2
  local socket=$dir/run/wharf.sock registry='' daemon='' status=0 digest
  trap 'status=$?; [ -z "${daemon:-}" ] || kill "$daemon" 2>/dev/null; [ -z "${registry:-}" ] || kill "$registry" 2>/dev/null; exit $status' EXIT
  if [ -n "${CRITEST_IMAGES:-}" ]; then
    cp -a "$CRITEST_IMAGES/storage" "$dir/storage"
    digest=$(cat "$CRITEST_IMAGES/digest")
  else
    digest=$("$LAB" critest-images "$dir/storage")
  fi
  cp "$CRITEST" "$dir/critest"
  if grep -qa "$public_digest" "$dir/critest"; then
    LC_ALL=C sed -i "s/$public_digest/${digest#sha256:}/g" "$dir/critest"
  else
    echo "NOTE: this critest pulls test-image-digest by a digest that is not known here; that spec fails." >&2
  fi

  cat >"$dir/registry.yml" <<YML
version: 0.1
log: { level: warn }
storage: { filesystem: { rootdirectory: $dir/storage }, maintenance: { readonly: { enabled: true } } }
http: { addr: "127.0.0.1:5000" }
YML
  OTEL_TRACES_EXPORTER=none docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
  registry=$!
  {
    printf 'state_dir = "%s/state"\nrun_dir = "%s/run"\ndefault_runtime = "%s"\n' "$dir" "$dir" "$handler"
    # Specs hold a plugin's answer back for two seconds and a little.
    printf '[nri]\nenable = true\nsocket = "%s/nri.sock"\nrequest_timeout_secs = 10\n' "$dir"
    printf 'plugin_path = "%s/plugins"\nplugin_config_path = "%s/conf.d"\n' "$dir" "$dir"
    for name in runc crun; do
      path=$(command -v $name) && printf '[runtimes.%s]\npath = "%s"\n' "$name" "$path"
    done
    for name in gcr.io registry.k8s.io k8s.gcr.io public.ecr.aws docker.io; do
      printf '[registries."%s"]\nmirrors = ["127.0.0.1:5000"]\n' "$name"
    done
  } >"$dir/wharf.toml"
  "$WHARF_BIN" serve --config "$dir/wharf.toml" >"$dir/wharf.log" 2>&1 &
  daemon=$!
  for _ in $(seq 600); do
    if "$WHARF_BIN" --endpoint "unix://$socket" version >/dev/null 2>&1; then
      ready=1
      break
    fi
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.05
  done
  if [ "${ready:-}" != 1 ]; then
    echo "the daemon does not answer:" >&2
    tail -n 20 "$dir/wharf.log" >&2
    exit 1
  fi

  mkdir -p "$dir/bin" "$dir/report"
  [ -z "$GINKGO" ] || ln -s "$GINKGO" "$dir/bin/ginkgo"
  # It loads profiles of AppArmor by sudo, which root's machine may not have.
  command -v sudo >/dev/null || { printf '#!/bin/sh\nexec "$@"\n' >"$dir/bin/sudo" && chmod +x "$dir/bin/sudo"; }
  # Without ginkgo it takes the flag itself, whatever the number, for one of Go's that it refuses.
  local parallel=()
  [ "$PARALLEL" = 1 ] || parallel=(--parallel "$PARALLEL")
  # critest wants to be called from where it may write.
  cd "$dir"
  PATH=$dir/bin:$PATH "$dir/critest" --runtime-endpoint "unix://$socket" --image-endpoint "unix://$socket" --nri-socket "$dir/nri.sock" \
    "${parallel[@]}" --ginkgo.randomize-all --ginkgo.seed "$SEED" --ginkgo.flake-attempts=0 --ginkgo.no-color \
    --ginkgo.json-report="$dir/report/report.json" "$@" >"$dir/report/critest.log" 2>&1 || status=$?
  summary "$handler" "$dir" "$status"
  exit "$status"
}

# Passed, failed, skipped, and why.
summary() {
  local handler=$1 dir=$2 status=$3 report=$2/report/report.json
  if [ ! -s "$report" ]; then
    echo "critest on $handler: no report; its output ends with:" >&2
    tail -n 30 "$dir/report/critest.log" >&2
    exit 1
  fi
  jq -r --arg handler "$handler" --arg seed "$SEED" --arg parallel "$PARALLEL" '
    [.[].SpecReports[] | select(.LeafNodeType == "It")] as $all
    | def name: ((.ContainerHierarchyTexts // []) + [.LeafNodeText]) | join(" ");
      def reason: (.Failure.Message // "") | if . == "" then "left out by a flag (benchmarks, focus)" else . end;
      def count(state): [$all[] | select(.State == state)] | length;
    ($all | map(select(.State != "passed" and .State != "skipped" and .State != "pending"))) as $failed
    | ($all | map(select(.State == "skipped" or .State == "pending"))) as $skipped
    | ($failed[] | "FAILED: \(name)\n    \(.Failure.Message | gsub("\n"; "\n    ") | .[0:1500])\n    \(.Failure.Location.FileName // "" | split("/") | last):\(.Failure.Location.LineNumber // "")"),
      ($skipped | group_by(reason)[] | "skipped, \(length): \(.[0] | reason)"),
      "critest on \($handler) (\($parallel) at a time, seed \($seed)):",
      "\(count("passed")) passed, \($failed | length) failed, \($skipped | length) skipped"
  ' "$report"
  [ "$status" = 0 ] || echo "critest ended with $status" >&2
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
fi

handlers=builtin
case ${1:-} in
  all) handlers='builtin runc crun' && shift ;;
  builtin | runc | crun) handlers=$1 && shift ;;
esac
CRITEST=$(command -v "${CRITEST:-critest}" || true)
GINKGO=$(command -v "${GINKGO:-ginkgo}" || true)
if [ -z "$CRITEST" ]; then
  {
    echo "##################################################################################################"
    echo "## critest was NOT run: it is neither on PATH nor in CRITEST. CRI's conformance was NOT checked. ##"
    echo "## Build it from https://github.com/kubernetes-sigs/cri-tools (make critest), and ginkgo.        ##"
    echo "##################################################################################################"
  } >&2
  [ "${CRITEST_OPTIONAL:-}" = 1 ] && exit 0
  exit 2
fi
PARALLEL=${PARALLEL:-4}
SEED=${SEED:-$(date +%s)}
if [ -z "$GINKGO" ] && [ "$PARALLEL" -gt 1 ]; then
  echo "NOTE: no ginkgo on PATH (critest's helper for parallel runs): the specs run one after the other." >&2
  PARALLEL=1
fi
target=${CARGO_TARGET_DIR:-$here/target}/debug
WHARF_BIN=${WHARF_BIN:-$target/wharf}
LAB=$target/lab
for program in "$WHARF_BIN" "$LAB"; do
  [ -x "$program" ] || { echo "$program is not built: cargo build --workspace --bins" >&2; exit 1; }
done
export CRITEST GINKGO PARALLEL SEED WHARF_BIN LAB

worst=0
for handler in $handlers; do
  if [ "$handler" != builtin ] && ! command -v "$handler" >/dev/null; then
    echo "critest on $handler was NOT run: $handler is not installed (make setup)" >&2
    worst=1
    continue
  fi
  dir=$(mktemp -d /tmp/wc.XXXXXX)
  # Runtimes walk to root filesystems as the root of a user namespace.
  chmod 711 "$dir"
  options=()
  # crun refuses a cgroup2 mount with controllers beside version 1.
  [ "$handler" != crun ] || options=(--no-cgroup2)
  "$LAB" run "${options[@]}" "critest-$$-$handler" "$here/critest.sh" --inside "$handler" "$dir" "$@" || worst=$?
  # The lab's mounts of the hierarchies hid these from the lab itself.
  find /sys/fs/cgroup/*/wharf-e2e/"critest-$$-$handler" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  if [ -n "${CRITEST_LOGS:-}" ]; then
    mkdir -p "$CRITEST_LOGS/$handler"
    cp "$dir"/report/* "$dir"/*.log "$CRITEST_LOGS/$handler/" 2>/dev/null || true
  fi
  rm -rf "$dir"
done
exit "$worst"
