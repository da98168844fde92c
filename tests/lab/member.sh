#!/bin/sh
# The first process of a cluster's member (tests/lab/cluster.py), in namespaces of its own: gives it
# file systems of its own and then only reaps. Its /etc and /var/lib lie in DIRECTORY; the rest of the
# disk is the machine's.
#     member.sh NAME DIRECTORY CGROUP DEVICES
# CGROUP is the member's cgroup, by its name in each hierarchy; DEVICES are nodes of /dev.
set -eu
name=$1 directory=$2 cgroup=$3 devices=$4
export LC_ALL=C.UTF-8

# The machine's, such as network namespaces, which would not end while they are mounted here. Each goes
# with all below it. In a container of systemd-nspawn some hide others, but none the first by name.
first_below_run() { awk '$2 ~ "^/run/" { print $2 }' /proc/mounts | sort | head -n 1; }
while point=$(first_below_run) && [ "$point" ]; do
    umount --lazy "$point"
done

hierarchies=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts)
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/cgroup
mount -t tmpfs -o mode=755 tmpfs /run/cgroup
for hierarchy in $hierarchies; do
    # The namespace's root; liblxc takes this name at the end of a path for none.
    mkdir -p "$hierarchy/$cgroup/init.scope"
    for file in cpuset.cpus cpuset.mems; do
        # Only v1 lets nobody in before these are set.
        [ ! -e "$hierarchy/$cgroup/cgroup.clone_children" ] || [ ! -e "$hierarchy/$cgroup/$file" ] \
            || cat "$hierarchy/$cgroup/$file" >"$hierarchy/$cgroup/init.scope/$file"
    done
    echo $$ >"$hierarchy/$cgroup/init.scope/cgroup.procs"
    mkdir -p "/run/cgroup/${hierarchy#/sys/fs/cgroup}"
    mount --bind "$hierarchy/$cgroup" "/run/cgroup/${hierarchy#/sys/fs/cgroup}"
done
# A sysfs shows the network devices of the namespace in which it was mounted.
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount --recursive /run/cgroup

mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
for device in $devices; do
    mkdir -p "/run/dev/$(dirname "$device")"
    touch "/run/dev/$device"
    mount --bind "/dev/$device" "/run/dev/$device"
done
ln -s /proc/self/fd /run/dev/fd
ln -s fd/0 /run/dev/stdin
ln -s fd/1 /run/dev/stdout
ln -s fd/2 /run/dev/stderr
ln -s pts/ptmx /run/dev/ptmx
mkdir /run/dev/pts /run/dev/shm /run/dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts /run/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /run/dev/shm
mount -t mqueue mqueue /run/dev/mqueue
mount --rbind /run/dev /dev
umount --recursive /run/dev

# What the machine's programs keep in /var/lib, such as dpkg, is seen through links there.
mkdir /run/machine
mount --rbind /var/lib /run/machine
mount --bind "$directory/var/lib" /var/lib
mount --bind "$directory/etc" /etc

hostname "$name"
ip link set lo up
touch /run/ready
# Whoever ignores this signal has no zombies; it stays ignored by what is executed.
trap '' CHLD
exec sleep infinity
