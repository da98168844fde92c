#!/bin/sh
# `make run`: from a bare Debian to podyd on 127.0.0.1:8799. Where systemd runs it installs the
# package; elsewhere podyd serves in the foreground until Ctrl-C. What is there already stays as it
# is, and the engine and the pods go on.
set -eu
cd "$(dirname "$0")/../.."
. tests/lab/machine.sh

HOME_DIR=/usr/local/lib/podyd
CONFIG=/etc/podyd/podyd.yaml
PODYD=$HOME_DIR/bin/podyd

welcome() {
    cat <<END

podyd serves http://127.0.0.1:8799. Every Linux account with a password can log in; make one with
    sudo adduser alice
and, in another terminal, make the first pod:
    curl -u alice -X POST 'http://127.0.0.1:8799/pod/create?ins=first&image=debian12'
    curl -u alice -X POST 'http://127.0.0.1:8799/pod/exec?ins=first&cmd=uname+-a'
Settings: $CONFIG (optional). $1

END
}

need_root run
if [ -d /run/systemd/system ]; then
    debian/build.sh
    export DEBIAN_FRONTEND=noninteractive
    apt-get install --yes --reinstall ./build/deb/podyd_*.deb ./build/deb/podyd-client_*.deb
    if [ -z "$(podyd image list)" ]; then
        podyd image build
    fi
    systemctl is-active --quiet podyd || { systemctl status --no-pager podyd; exit 1; }
    welcome "It is a service: systemctl status podyd, journalctl -u podyd."
    exit 0
fi
# shellcheck disable=SC2086 # a list of words
install_packages $PACKAGES
make_environment "$HOME_DIR" debian/vendor.txt

# Copied, because podyd's own account may not be able to read this checkout.
sources=$(cat setup.cfg $(find podyd profiles -type f -not -name '*.pyc' | sort) | sha256sum)
if [ "$(cat "$HOME_DIR/sources" 2>/dev/null)" != "$sources" ]; then
    echo "Installing podyd into $HOME_DIR"
    "$HOME_DIR/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        --no-build-isolation --force-reinstall .
    rm -rf build/lib build/bdist.* podyd.egg-info
    echo "$sources" >"$HOME_DIR/sources"
fi

link_programs "$HOME_DIR/bin" /usr/local/bin podyd pody podx

if ! $PYTHON tests/lab/lab.py status >/dev/null; then
    $PYTHON tests/lab/lab.py up --gpus 0
fi
"$PODYD" setup
if [ -z "$("$PODYD" image list)" ]; then
    "$PODYD" image build
fi

as_podyd() {
    exec setpriv --reuid podyd --regid podyd --init-groups --no-new-privs "$PODYD" "$@"
}

"$PODYD" auth &
auth=$!
"$PODYD" packing &
packing=$!
"$PODYD" cards &
cards=$!
install -d -m 700 -o podyd -g podyd /run/podyd-ports
as_podyd ports &
ports=$!
trap 'kill $auth $packing $cards $ports 2>/dev/null || true; wait $auth $packing $cards $ports || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

welcome "Ctrl-C ends podyd; pods go on."
as_podyd serve &
serve=$!
# A signal ends `wait`; podyd then finishes what is under way.
trap 'kill -TERM $serve; wait $serve || true; exit 0' INT TERM
wait $serve
