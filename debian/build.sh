#!/bin/sh
# `make deb`: the Debian packages in build/deb. Built in a copy of what git tracks, so that the
# checkout stays as it is; two builds of one commit have the same bytes.
set -eu
cd "$(dirname "$0")/.."
. tests/lab/machine.sh

TOOLS="ca-certificates dpkg-dev git python3 python3-pip"
WHEELS=build/wheels
OUT=build/deb

if [ "$(id -u)" = 0 ]; then
    # shellcheck disable=SC2086 # a list of words
    install_packages $TOOLS
    if ! dpkg-checkbuilddeps 2>/dev/null; then
        echo "Installing what the build needs"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get build-dep -qq --yes --no-install-recommends ./ \
            >/dev/null
    fi
elif ! { command -v git && $PYTHON -m pip --version && dpkg-checkbuilddeps; } >/dev/null 2>&1; then
    echo "Something that the build needs is missing; type 'sudo make deb', or:" >&2
    echo "    sudo apt-get install $TOOLS && sudo apt-get build-dep ./" >&2
    exit 1
fi

# The hashes of debian/vendor.txt and the wheels that are there, one for one.
have_wheels() {
    [ -d "$WHEELS" ] || return 1
    pinned=$(sed -n 's/.*--hash=sha256:\([0-9a-f]*\).*/\1/p' debian/vendor.txt | sort)
    [ "$pinned" = "$(sha256sum "$WHEELS"/*.whl | cut -d ' ' -f 1 | sort)" ]
}

if ! have_wheels; then
    echo "Fetching the wheels of debian/vendor.txt"
    rm -rf "$WHEELS"
    $PYTHON -m pip download --quiet --disable-pip-version-check --no-cache-dir --require-hashes \
        --no-deps --only-binary :all: --requirement debian/vendor.txt --dest "$WHEELS"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/podyd"
# As root in another user's checkout, git would refuse.
git -c safe.directory="$PWD" ls-files -z >"$work/names"
tar --create --file="$work/tree.tar" --no-recursion --null --files-from="$work/names"
tar --extract --file="$work/tree.tar" --directory="$work/podyd" --no-same-owner
cp -r "$WHEELS" "$work/podyd/debian/wheels"
if ! (cd "$work/podyd" && dpkg-buildpackage --build=binary --no-sign) >"$work/log" 2>&1; then
    cat "$work/log" >&2
    exit 1
fi
rm -rf "$OUT"
mkdir -p "$OUT"
install -m 644 "$work"/*.deb "$work"/*.changes "$work"/*.buildinfo "$OUT"
(cd "$OUT" && ls -l ./*.deb)
