# Prepares a Debian machine for podyd: packages and a Python environment. Sourced, with `set -eu`.
# shellcheck shell=sh

PYTHON=/usr/bin/python3

# The engine that is tested: Debian 12 has LXD, and what comes after it Incus, also where it has both.
engine_of_release() {
    # shellcheck source=/dev/null
    case $(. /etc/os-release && echo "$ID $VERSION_CODENAME") in
        "debian bookworm") echo lxd ;;
        debian*) echo incus ;;
        *) echo lxd ;;
    esac
}

export PODYD_TEST_ENGINE="${PODYD_TEST_ENGINE:-$(engine_of_release)}"
case $PODYD_TEST_ENGINE in
    incus) ENGINE_PACKAGES="incus-base incus-client" ;;
    *) ENGINE_PACKAGES="lxd lxd-client" ;;
esac

# What podyd runs on, what an engine needs where nothing recommends it, and what builds an image.
PACKAGES="ca-certificates python3 python3-venv python3-setuptools python3-wheel python3-tornado
python3-yaml python3-pyroute2 python3-cryptography python3-dateutil python3-requests
python3-requests-toolbelt python3-prometheus-client python3-requests-unixsocket python3-ws4py python3-six
$ENGINE_PACKAGES lxcfs uidmap dnsmasq-base nftables iproute2 btrfs-progs squashfs-tools squashfs-tools-ng rsync
mmdebstrap distro-info-data util-linux zstd procps passwd libpam-modules libpam-runtime python3-argcomplete
python3-websocket"

need_root() {
    if [ "$(id -u)" != 0 ]; then
        echo "This prepares the machine and needs root: type 'sudo make $1'." >&2
        exit 1
    fi
}

# install_packages NAME...: those that are missing, and no service is started by hand of apt
# where no systemd runs.
install_packages() {
    missing=
    for package; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null \
            | grep -qx installed || missing="$missing $package"
    done
    # An LXD that runs already, such as the snap's, is used.
    if [ -S /var/snap/lxd/common/lxd/unix.socket ]; then
        missing=$(printf ' %s ' "$missing" | sed 's/ lxd / /; s/ lxd-client / /')
    fi
    # shellcheck disable=SC2086 # a list of words
    set -- $missing
    [ $# -gt 0 ] || return 0
    echo "Installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends "$@" >/dev/null
}

# make_environment DIRECTORY REQUIREMENTS...: Debian's libraries, and the pinned ones beside them.
make_environment() {
    directory=$1
    shift
    stamp=$(cat "$@" | sha256sum)
    if [ "$(cat "$directory/stamp" 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    echo "Making the Python environment $directory"
    $PYTHON -m venv --clear --system-site-packages "$directory"
    for requirements; do
        "$directory/bin/pip" install --quiet --disable-pip-version-check --no-deps \
            --require-hashes --requirement "$requirements"
    done
    echo "$stamp" >"$directory/stamp"
}

# link_programs FROM TO NAME...: into a directory of the PATH; what somebody else has put there stays.
link_programs() {
    from=$1 to=$2
    shift 2
    for name; do
        [ "$(readlink "$to/$name")" != "$from/$name" ] || continue
        if [ -e "$to/$name" ] || [ -L "$to/$name" ]; then
            echo "$to/$name is not podyd's and stays; podyd's is $from/$name" >&2
        else
            ln -s "$from/$name" "$to/$name"
        fi
    done
}

# run_tests ARGUMENT...: pytest's. Where all that failed was spoiled by a known fault of LXD's or the
# kernel's, named by their logs (tests/slips.py), it runs once more, with nothing beside it. Anything
# else counts.
run_tests() {
    status=0
    .venv/bin/python -m pytest -p tests.slips "$@" || status=$?
    [ "$status" = 75 ] || return "$status"
    echo "What was spoiled runs once more, alone."
    .venv/bin/python -m pytest -p tests.slips "$@" --numprocesses=0 --spoiled
}
