#!/bin/sh
# In a fresh Debian of a container, as root: what a server has beyond that, and `make test`.
set -eu
cd "$(dirname "$0")/../.."

# Before the engine wants one for a pool.
for number in $(seq 0 31); do
    [ -e "/dev/loop$number" ] || mknod "/dev/loop$number" b 7 "$number"
done
# Devices of a kind that is no pod's.
for number in 0 12; do
    [ -e "/dev/tty$number" ] || mknod "/dev/tty$number" c 4 "$number"
done
# systemd-nspawn leaves its payload only those that a systemd in it would use.
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
    for hierarchy in /sys/fs/cgroup/*/; do
        mount -o remount,bind,rw "$hierarchy"
    done
fi
apt-get update -qq
# Where the release has both, tests/integration/test_migrate.py begins with LXD and ends with Incus.
# The packages come in this order, as on a server: LXD's gives root a range of ids whatever there is,
# and Incus starts no pod where root has two.
. tests/lab/machine.sh
if [ "$PODYD_TEST_ENGINE" = lxd ] && [ "$(engine_of_release)" = incus ]; then
    # shellcheck disable=SC2086 # a list of words
    install_packages $ENGINE_PACKAGES
    install_packages incus-base incus-client
fi
exec tests/lab/test.sh "$@"
