#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first process, out of the initramfs: from nothing to this machine's files.
set -u

b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
while read -r module; do
    $b insmod "/modules/$module"
done < /modules/order

attach() {
    $b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose "$1" "$2"
}
if attach host /host && attach kernel /kernel; then
    # Nothing that is written leaves the guest's memory.
    $b mount -t tmpfs -o size=75% memory /memory
    $b mkdir /memory/upper /memory/work
    $b mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work new /new
    $b mkdir -p /new/usr/lib/modules
    $b mount --move /kernel /new/usr/lib/modules
    $b mount --move /dev /new/dev
    $b mount --move /proc /new/proc
    $b mount -t sysfs sys /new/sys
    # The checkout may lie below what is covered now.
    checkout=/new$($b cat /root)
    $b mkdir /checkout
    $b mount --bind "$checkout" /checkout
    $b mount -t tmpfs run /new/run
    $b mount -t tmpfs -o mode=1777 tmp /new/tmp
    $b mkdir -p "$checkout"
    $b mount --move /checkout "$checkout"
    $b cp /guest.sh /command /root /new/run/
    exec $b switch_root /new /bin/bash /run/guest.sh
fi
echo "this machine's files cannot be mounted"
$b reboot -f
