#!/bin/sh
# `make bench`: podyd beside the engine's own API on this machine. Arguments go to bench.py.
set -eu
cd "$(dirname "$0")/../.."
. tests/lab/machine.sh

need_root bench
# shellcheck disable=SC2086 # a list of words
install_packages $PACKAGES gcc libc6-dev wrk busybox-static
make_environment .venv debian/vendor.txt tests/requirements.txt
if ! $PYTHON tests/lab/lab.py status >/dev/null; then
    trap '$PYTHON tests/lab/lab.py down' EXIT
fi
# The pages show as many cards as a large server has.
$PYTHON tests/lab/lab.py up --gpus 8
.venv/bin/python -m tests.bench.bench "$@"
