#!/bin/sh
# `make test`: the whole suite on a real LXD or Incus with simulated GPUs. Arguments go to pytest, which
# then runs one test at a time. An engine that the lab had to start for it is taken away again.
set -eu
cd "$(dirname "$0")/../.."
. tests/lab/machine.sh

# On two cores: most tests wait for the engine much of the time. With four, some limits are too short.
WORKERS=3
# What is compiled is kept: each of many Pythons would compile all of podyd and of the tests anew.
unset PYTHONDONTWRITEBYTECODE

need_root test
# shellcheck disable=SC2086 # a list of words
install_packages $PACKAGES gcc libc6-dev strace openssh-client zsh fish busybox-static \
    chromium fonts-dejavu-core
make_environment .venv debian/vendor.txt tests/requirements.txt
make_environment .pody04 tests/pody04.txt
if ! $PYTHON tests/lab/lab.py status >/dev/null; then
    trap '$PYTHON tests/lab/lab.py down' EXIT
fi
$PYTHON tests/lab/lab.py up
if [ $# -gt 0 ]; then
    .venv/bin/python -m pytest "$@"
    exit
fi
# What stops the engine runs when nothing else does.
survival=tests/integration/test_survival.py
run_tests tests/unit tests/integration --ignore=$survival -m "not alone" \
    --numprocesses=$WORKERS --dist=loadfile --no-loadscope-reorder --durations=20
run_tests tests/integration --ignore=$survival -m alone
run_tests tests/lab $survival
