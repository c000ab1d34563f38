#!/usr/bin/env bash
# unit_boot.sh FOLDER ROOT VENV: systemd as the first process of a machine of its own.
#
# Its files are this machine's, under an overlay whose changes lie in memory; its processes,
# mounts, network and control groups are its own. FOLDER/pid is where it is told which process
# became systemd, FOLDER/group the control group that is to be removed when all has ended.
set -euo pipefail
folder=$1 checkout=$2 venv=$3

if [[ ${4:-} != inside ]]; then
    mkdir "$folder/cgroup" "$folder/tmpfs"
    # We are in a mount namespace of the tests' own.
    mount -t cgroup2 cgroup2 "$folder/cgroup"
    group=$folder/cgroup/nftrace-unit.$$
    mkdir "$group"
    echo "$group" > "$folder/group"
    echo $$ > "$group/cgroup.procs"
    exec unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup \
        bash "$0" "$folder" "$checkout" "$venv" inside
fi

memory=$folder/tmpfs
root=$memory/root
mount -t tmpfs tmpfs "$memory"
mkdir "$memory"/{upper,work,venv,venv-work} "$root"
mount -t overlay -o "lowerdir=/,upperdir=$memory/upper,workdir=$memory/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in full null random tty urandom zero; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
# What systemd makes a service's own /dev of.
mkdir "$root/dev/hugepages" "$root/dev/mqueue" "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

# Nothing of this machine's own services; of what is installed, what the tests need.
rm -rf "$root/etc/systemd/system" "$root/var/lib/nftrace" "$root/etc/nftrace" \
    "$root/var/log/journal"
mkdir -p "$root/etc/systemd/system" "$root/etc/nftrace" "$root/opt/nftrace" "$root/opt/venv"
mount --bind "$checkout" "$root/opt/nftrace"
mount -t overlay -o "lowerdir=$venv,upperdir=$memory/venv,workdir=$memory/venv-work" \
    overlay "$root/opt/venv"
# The unit may not see where the checkout lies otherwise, below /home or /tmp.
for site in "$root"/opt/venv/lib/python3*/site-packages; do
    echo /opt/nftrace > "$site/checkout.pth"
done
cp "$checkout/packaging/nftrace.service" "$root/etc/systemd/system"
cat > "$root/etc/systemd/system/tests.target" << 'UNIT'
[Unit]
DefaultDependencies=no
Wants=systemd-journald.service
UNIT
mkdir -p "$root/usr/local/bin"
cat > "$root/usr/local/bin/nftrace" << 'PROGRAM'
#!/bin/sh
PYTHONDONTWRITEBYTECODE=1 exec /opt/venv/bin/python -m tracer.cli.main "$@"
PROGRAM
chmod 755 "$root/usr/local/bin/nftrace"

ip link set lo up
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
# As on any machine that systemd booted: names of namespaces are seen by all services.
mount --make-rshared /
cd /
exec env -i container=tests PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
    /lib/systemd/systemd --unit=tests.target --log-target=journal --show-status=0
