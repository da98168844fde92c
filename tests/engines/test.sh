#!/bin/sh
# `make test-engines`: the whole suite on each engine of each Debian. RELEASE and ENGINE choose one
# (`make test-engines RELEASE=trixie ENGINE=incus`), arguments go to pytest.
set -eu
cd "$(dirname "$0")/../.."
. tests/lab/machine.sh

need_root test-engines
# shellcheck disable=SC2086 # a list of words
install_packages $PACKAGES systemd-container
make_environment .venv debian/vendor.txt tests/requirements.txt
exec .venv/bin/python -m tests.engines "$@"
