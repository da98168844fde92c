#!/bin/sh
# `make test-packaging`: the packages on freshly booted Debian servers. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/../.."
. tests/lab/machine.sh

need_root test-packaging
# shellcheck disable=SC2086 # a list of words
install_packages $PACKAGES gcc libc6-dev systemd-container piuparts firefox-esr
make_environment .venv debian/vendor.txt tests/requirements.txt
[ $# -gt 0 ] || set -- tests/packaging
run_tests "$@"
