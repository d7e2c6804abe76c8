#!/usr/bin/env bash
# Runs critest (github.com/kubernetes-sigs/cri-tools) against a running Wharf.
#   ./critest.sh [SOCKET] [critest's own flags, for example --ginkgo.focus=PodSandbox]
# critest pulls public test images; on a machine without the internet, give the registries mirrors in wharf.toml.
set -euo pipefail

socket=/run/wharf/wharf.sock
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  socket=$1
  shift
fi
critest=${CRITEST:-critest}
if ! command -v "$critest" >/dev/null; then
  echo "critest is not installed. Build it from cri-tools with \`make critest\`, or set CRITEST to its path." >&2
  exit 2
fi
if [ ! -S "$socket" ]; then
  echo "nothing listens at $socket: start \`wharf serve\` first" >&2
  exit 2
fi
exec "$critest" --runtime-endpoint "unix://$socket" --image-endpoint "unix://$socket" --parallel "${PARALLEL:-1}" "$@"
