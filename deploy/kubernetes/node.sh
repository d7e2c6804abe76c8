#!/bin/sh
# Puts Wharf on a node, makes kubelet use it, and takes both back. Runs on the node as root, by hand or by the DaemonSet of
# install.yaml; each action may be repeated.
#
#   node.sh install   binary, unit and configuration; starts Wharf, or starts it anew when a file has changed: pods run on
#   node.sh switch    makes kubelet use Wharf; the node must have been drained, for pods of another runtime stay with it
#   node.sh back      makes kubelet use what it used before
#   node.sh remove    stops Wharf and removes it; refused while kubelet uses it or it has pods. PURGE=1 removes its state too
#
# SOURCE is the directory with wharf, wharf.service and wharf.toml (default: where this script lies).
set -eu

source=${SOURCE:-$(cd "$(dirname "$0")" && pwd)}
binary=/usr/local/bin/wharf
unit=/etc/systemd/system/wharf.service
config=/etc/wharf/wharf.toml
socket=unix:///run/wharf/wharf.sock
# Where kubelet's endpoint may stand: kubeadm's flags, kubelet's configuration, and from kubeadm 1.34 on its own note of
# what this node has different from others, out of which upgrades write the configuration anew.
flags=${KUBELET_FLAGS:-/var/lib/kubelet/kubeadm-flags.env}
settings=${KUBELET_CONFIG:-/var/lib/kubelet/config.yaml}
instance=${KUBELET_INSTANCE:-/var/lib/kubelet/instance-config.yaml}
kept=/var/lib/kubelet/before-wharf

say() { echo "wharf node: $*"; }
fail() {
  echo "wharf node: $*" >&2
  exit 1
}

# put FILE TARGET MODE: true if the target has changed. By rename, so that what runs keeps its file.
put() {
  if cmp -s "$1" "$2"; then
    return 1
  fi
  mkdir -p "$(dirname "$2")"
  cp "$1" "$2.new"
  chmod "$3" "$2.new"
  mv "$2.new" "$2"
}

answers() {
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    "$binary" --endpoint "$socket" version >/dev/null 2>&1 && return 0
    sleep 1
  done
  return 1
}

install_node() {
  "$source/wharf" --version >/dev/null || fail "$source/wharf does not run on this machine"
  changed=
  if [ -e "$binary" ]; then
    cp -p "$binary" "$binary.before"
  fi
  put "$source/wharf" "$binary" 0755 && changed=1
  put "$source/wharf.service" "$unit" 0644 && changed=1
  # What the administrator has written stays.
  [ -e "$config" ] || { put "$source/wharf.toml" "$config" 0644 && changed=1; }
  "$binary" --config "$config" serve --check >/dev/null || fail "$config is not right for this version"
  systemctl daemon-reload
  systemctl enable --quiet wharf
  if [ -n "$changed" ] && systemctl is-active --quiet wharf; then
    say "starting Wharf anew; pods run on"
    systemctl restart wharf || true
  else
    systemctl start wharf || true
  fi
  if ! answers; then
    if [ -e "$binary.before" ] && ! cmp -s "$binary" "$binary.before"; then
      mv "$binary.before" "$binary"
      systemctl restart wharf || true
      fail "the new version does not answer; the one before was put back"
    fi
    fail "Wharf does not answer: journalctl -u wharf"
  fi
  rm -f "$binary.before"
  say "$("$binary" --version) serves at $socket"
}

uses_wharf() { grep -qs "run/wharf/wharf.sock" "$flags" "$settings"; }

switch_kubelet() {
  answers || fail "Wharf does not answer, so kubelet is left as it is"
  if uses_wharf; then
    say "kubelet uses Wharf already"
    return
  fi
  [ -e "$settings" ] || [ -e "$flags" ] || fail "neither $flags nor $settings is there; see docs/install.md"
  mkdir -p "$kept"
  for file in "$flags" "$settings" "$instance"; do
    [ ! -e "$file" ] || cp -p "$file" "$kept/"
  done
  if grep -qs -e "--container-runtime-endpoint=" "$flags"; then
    sed -i "s|--container-runtime-endpoint=[^ \"]*|--container-runtime-endpoint=$socket|" "$flags"
  elif grep -qs "^containerRuntimeEndpoint:" "$settings"; then
    sed -i "s|^containerRuntimeEndpoint:.*|containerRuntimeEndpoint: $socket|" "$settings"
  else
    echo "containerRuntimeEndpoint: $socket" >>"$settings"
  fi
  [ ! -e "$instance" ] || sed -i "s|^containerRuntimeEndpoint:.*|containerRuntimeEndpoint: $socket|" "$instance"
  systemctl restart kubelet
  say "kubelet uses Wharf; the files of before are in $kept"
}

switch_back() {
  if ! uses_wharf; then
    say "kubelet does not use Wharf"
    return
  fi
  [ -d "$kept" ] || fail "$kept is not there: set kubelet's endpoint by hand"
  for file in "$flags" "$settings" "$instance"; do
    [ ! -e "$kept/$(basename "$file")" ] || cp -p "$kept/$(basename "$file")" "$file"
  done
  rm -r "$kept"
  systemctl restart kubelet
  say "kubelet uses what it used before"
}

remove_node() {
  ! uses_wharf || fail "kubelet uses Wharf: drain the node and run this with 'back' first"
  if [ -x "$binary" ] && systemctl is-active --quiet wharf; then
    pods=$("$binary" --endpoint "$socket" pods -q) || fail "Wharf does not say whether it has pods"
    [ -z "$pods" ] || fail "Wharf still has pods; remove them: wharf pods -q | xargs wharf rm -f"
  fi
  systemctl disable --now --quiet wharf 2>/dev/null || true
  rm -f "$unit" "$binary" "$binary.before"
  systemctl daemon-reload
  if [ -n "${PURGE:-}" ]; then
    rm -rf /etc/wharf /var/lib/wharf /run/wharf
  fi
  say "Wharf is removed${PURGE:+ with its state}"
}

case ${1:-} in
  install) install_node ;;
  switch) switch_kubelet ;;
  back) switch_back ;;
  remove) remove_node ;;
  *) fail "one of install, switch, back and remove is wanted" ;;
esac
