# `sudo make run` and `sudo make test` set up all that they need on a bare Debian 12 or newer.

.PHONY: run test test-packaging test-engines check bench coverage deb environment lab-up lab-down lab-cluster \
    lab-cluster-down

run:
	@tests/lab/run.sh

test:
	@tests/lab/test.sh

# On freshly booted servers of both Debian releases; arguments of pytest: tests/packaging/test.sh -k tls
test-packaging:
	@tests/packaging/test.sh

# The same as `test` on LXD and Incus of Debian 12, 13 and sid, in fresh containers, all or
# RELEASE=trixie ENGINE=incus; arguments of pytest: tests/engines/test.sh -k exec
test-engines:
	@tests/engines/test.sh

check: environment
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench:
	@tests/bench/bench.sh

# Of the unit tests; arguments of pytest, such as files of tests/integration (as root, with a lab that is
# up): TESTS=tests/integration/test_exec.py
coverage: environment
	@.venv/bin/python -m tests.covered $(TESTS)

deb:
	@debian/build.sh

environment:
	@. tests/lab/machine.sh && { [ "$$(id -u)" != 0 ] || install_packages $$PACKAGES; } \
	    && make_environment .venv debian/vendor.txt tests/requirements.txt

# Of the engine that `test` has on this release; PODYD_TEST_ENGINE=incus chooses.
lab-up:
	@. tests/lab/machine.sh && $$PYTHON tests/lab/lab.py up

lab-down:
	@. tests/lab/machine.sh && $$PYTHON tests/lab/lab.py down

# Three members of one cluster, in network namespaces; see tests/lab/cluster.py.
lab-cluster:
	@. tests/lab/machine.sh && $$PYTHON -m tests.lab.cluster up

lab-cluster-down:
	@. tests/lab/machine.sh && $$PYTHON -m tests.lab.cluster down
