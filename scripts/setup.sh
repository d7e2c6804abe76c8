#!/usr/bin/env bash
# Installs the Debian packages that are missing. Starts no service and leaves those that run alone.
set -euo pipefail

packages=(
  build-essential          # the C compiler that some crates and the linker need
  runc crun                # handlers beside the built-in one
  containernetworking-plugins
  docker-registry skopeo umoci busybox-static   # fixture images and who serves them
  tzdata                                       # time zones
  gnupg gpgv               # signatures of images
  criu                     # checkpoints
  containerd openssl       # images to take over, and who signs some
  e2fsprogs                # the file system that a test takes the power from
  strace                   # counts the system calls of the hot paths
  nftables iproute2 util-linux procps jq
  shellcheck
)
if ! command -v dpkg-query >/dev/null; then
  echo "This is not Debian. Install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
    missing+=("$package")
  fi
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "Missing: ${missing[*]}. Run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "Installing: ${missing[*]}"
  # A policy that says no keeps packages from starting their daemons during installation.
  policy=/usr/sbin/policy-rc.d
  made=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    made=1
  fi
  trap '[ -z "$made" ] || rm -f $policy' EXIT
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

if ! command -v cargo >/dev/null; then
  echo "cargo is missing. Install Rust 1.90 or newer (https://rustup.rs), then run this again." >&2
  exit 1
fi
echo "Everything that building and testing need is installed."
