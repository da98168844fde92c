#!/bin/sh
# In a fresh Debian of a container, as root: what a server has beyond that, and `make test`.
set -eu
cd "$(dirname "$0")/../.."

# Before the engine wants one for a pool.
for number in $(seq 0 31); do
    [ -e "/dev/loop$number" ] || mknod "/dev/loop$number" b 7 "$number"
done
# systemd-nspawn leaves its payload only those that a systemd in it would use.
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
    for hierarchy in /sys/fs/cgroup/*/; do
        mount -o remount,bind,rw "$hierarchy"
    done
fi
apt-get update -qq
exec tests/lab/test.sh "$@"
