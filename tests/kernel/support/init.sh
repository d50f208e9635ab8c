#!/bin/sh
# Process 1 of the guest: mounts, loads the modules every test needs, runs /test.sh, says its exit code, powers off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin DM_DISABLE_UDEV=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs run /run; mkdir -p /run/lock
exec </dev/console >/dev/console 2>&1
. /lib/guest.sh
load virtio_mmio virtio_blk dm_mod dm_snapshot
echo "@@READY $(uname -r)"
sh /test.sh
echo "@@EXIT $?"
sync; poweroff -f
