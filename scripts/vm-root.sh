#!/usr/bin/env bash
# Makes the test machine's root file system: Debian with systemd, its cloud kernel, and what the end-to-end tests need.
# VM_SUITE is Debian's suite, or "small" for as much of this machine's own Debian as boots with systemd and runs tests.
# Writes root.ext4, vmlinuz and initrd to the directory that is given; what is there and current is left alone.
# Needs no loop device and mounts nothing that outlives it.
set -euo pipefail

out=$1
suite=${VM_SUITE:-bookworm}
packages=(
  systemd systemd-sysv dbus udev kmod linux-image-cloud-amd64 apparmor
  selinux-policy-default policycoreutils
  runc crun criu containernetworking-plugins
  docker-registry busybox-static tzdata
  nftables iptables iproute2 util-linux procps jq ca-certificates
  e2fsprogs xfsprogs
)

policy=$(dirname "$0")/vm-selinux.cil
stamp=$(cat "$0" "$policy" <(echo "$suite") | sha256sum)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi
needed=(qemu-system-x86_64 mke2fs busybox)
[ "$suite" = small ] || needed+=(mmdebstrap)
for program in "${needed[@]}"; do
  command -v "$program" >/dev/null || {
    echo "$program is missing: apt-get install mmdebstrap qemu-system-x86 e2fsprogs busybox-static" >&2
    exit 1
  }
done

rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# A whole Debian, as on a node.
whole() {
  echo "Making a root file system of Debian $suite in $out (some minutes, once)"
  # mmdebstrap mounts proc, sys and dev into what it makes: in a mount namespace that ends with it.
  unshare --mount --propagation private mmdebstrap --quiet --mode=root --variant=minbase \
    --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --include="$(IFS=,; echo "${packages[*]}")" "$suite" "$root"
  # SELinux is on where the kernel is told so (VM_STEPS=selinux). Built here, because the machine would take minutes.
  cp "$policy" "$root/tmp/wharf.cil"
  chroot "$root" semodule -n -i /tmp/wharf.cil
  rm "$root/tmp/wharf.cil"
}

# The files of this machine's own packages, Debian's kernel and AppArmor: no udev, no D-Bus, nothing that starts by itself.
# Seconds.
small() {
  local own=(systemd mount util-linux procps busybox-static runc crun docker-registry containernetworking-plugins nftables iptables iproute2 jq bash coreutils findutils libstdc++6)
  local list=$work/files kernel
  mkdir -p "$root"/{usr/{bin,sbin,lib,lib64},etc/systemd/system,dev,proc,sys,run,tmp,var,root} "$work/kernel"
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances "${own[@]}" | sed -n 's/^\([a-z0-9][^ ]*\)$/\1/p' | sort -u |
    { xargs dpkg-query -L 2>/dev/null || true; } | grep -vE '^/usr/share/(doc|man|locale|info|i18n|lintian)/' | sort -u |
    while read -r file; do [ -d "$file" ] && [ ! -L "$file" ] || [ ! -e "$file" ] || echo "${file#/}"; done >"$list"
  { find /etc/alternatives -type l && ls /etc/{passwd,group,nsswitch.conf,ld.so.cache}; } | cut -c2- >>"$list"
  tar -C / -c --no-recursion -T "$list" | tar -C "$root" -x --keep-directory-symlink
  kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  (cd "$work/kernel" && apt-get -o APT::Sandbox::User=root download -q "$kernel" kmod apparmor >/dev/null)
  for package in "$work"/kernel/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -C "$root" -x --keep-directory-symlink --exclude='./usr/share/doc'
  done
  chroot "$root" depmod "$(basename "$root"/lib/modules/*)"
}
if [ "$suite" = small ]; then small; else whole; fi

# What a machine that lives for minutes does not need; all else starts as on any node.
for unit in docker-registry.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer logrotate.timer man-db.timer getty@.service serial-getty@.service getty-static.service \
  systemd-update-utmp.service systemd-firstboot.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo wharf-vm >"$root/etc/hostname"
# One that is new would be set up first.
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
mkdir -p "$root/payload"
: >"$root/etc/fstab"
cat >"$root/etc/systemd/system/wharf-vm-test.service" <<'END'
[Unit]
Description=Wharf's end-to-end tests
After=multi-user.target
RequiresMountsFor=/payload
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
ExecStart=/payload/vm-guest.sh
TimeoutStartSec=infinity
LimitNOFILE=1048576
TasksMax=infinity
OOMPolicy=continue
[Install]
WantedBy=graphical.target
END
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -s ../wharf-vm-test.service "$root/etc/systemd/system/graphical.target.wants/"

# The kernel has ext4 built in; the initrd loads the disk's driver and steps aside.
kernel=$(basename "$root"/lib/modules/*)
cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"
mkdir -p "$work/initrd"/{bin,dev,proc,new}
cp "$(command -v busybox)" "$work/initrd/bin/busybox"
modules=()
for module in virtio_pci virtio_blk virtio_console; do
  while read -r kind file; do
    [ "$kind" = insmod ] || continue
    cp "$root/$file" "$work/initrd/"
    modules+=("$(basename "$file")")
  done < <(chroot "$root" modprobe -S "$kernel" --show-depends $module)
done
cat >"$work/initrd/init" <<END
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
for module in ${modules[*]}; do busybox insmod /\$module 2>/dev/null; done
while [ ! -b /dev/vdb ]; do busybox sleep 0.1; done
busybox mount -t ext4 -o rw /dev/vda /new
busybox mount -t ext4 -o rw /dev/vdb /new/payload
busybox mount -o move /dev /new/dev
exec busybox switch_root /new /lib/systemd/systemd
END
chmod +x "$work/initrd/init"
(cd "$work/initrd" && find . | busybox cpio -o -H newc 2>/dev/null) >"$out/initrd"

rm -f "$root"/boot/initrd* "$root"/boot/vmlinuz*
# Sparse: space for the tests costs nothing.
mke2fs -q -t ext4 -O ^has_journal -L root -d "$root" "$out/root.ext4" 8G
echo "$stamp" >"$out/stamp"
