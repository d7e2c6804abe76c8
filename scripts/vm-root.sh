#!/usr/bin/env bash
# Makes the test machine's root file system: Debian with systemd, its cloud kernel, and what the end-to-end tests need.
# Writes root.ext4, vmlinuz and initrd to the directory that is given; what is there and current is left alone.
# Needs no loop device and mounts nothing that outlives it.
set -euo pipefail

out=$1
suite=${VM_SUITE:-bookworm}
packages=(
  systemd systemd-sysv dbus udev kmod linux-image-cloud-amd64 apparmor
  runc crun criu containernetworking-plugins
  docker-registry busybox-static
  nftables iptables iproute2 util-linux procps jq ca-certificates
  e2fsprogs xfsprogs
)

stamp=$(cat "$0" <(echo "$suite") | sha256sum)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi
for program in mmdebstrap qemu-system-x86_64 mke2fs busybox; do
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

echo "Making a root file system of Debian $suite in $out (some minutes, once)"
# mmdebstrap mounts proc, sys and dev into what it makes: in a mount namespace that ends with it.
unshare --mount --propagation private mmdebstrap --quiet --mode=root --variant=minbase \
  --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --include="$(IFS=,; echo "${packages[*]}")" "$suite" "$root"

# What a machine that lives for minutes does not need; all else starts as on any node.
for unit in docker-registry.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer logrotate.timer man-db.timer getty@.service serial-getty@.service \
  systemd-update-utmp.service systemd-firstboot.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo wharf-vm >"$root/etc/hostname"
: >"$root/etc/machine-id"
mkdir -p "$root/payload"
cat >"$root/etc/fstab" <<'END'
/dev/vda / ext4 rw 0 1
/dev/vdb /payload ext4 rw 0 2
END
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
for module in virtio_pci virtio_blk; do
  while read -r _ file; do
    cp "$root/$file" "$work/initrd/"
    modules+=("$(basename "$file")")
  done < <(chroot "$root" modprobe -S "$kernel" --show-depends $module)
done
cat >"$work/initrd/init" <<END
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
for module in ${modules[*]}; do busybox insmod /\$module 2>/dev/null; done
while [ ! -b /dev/vda ]; do busybox sleep 0.1; done
busybox mount -t ext4 -o rw /dev/vda /new
busybox mount -o move /dev /new/dev
exec busybox switch_root /new /sbin/init
END
chmod +x "$work/initrd/init"
(cd "$work/initrd" && find . | busybox cpio -o -H newc 2>/dev/null) >"$out/initrd"

rm -f "$root"/boot/initrd* "$root"/boot/vmlinuz*
# Sparse: space for the tests costs nothing.
mke2fs -q -t ext4 -O ^has_journal -L root -d "$root" "$out/root.ext4" 8G
echo "$stamp" >"$out/stamp"
