# `sudo make run` and `sudo make test` set up all that they need on a bare Debian 12.

.PHONY: run test check bench environment lab-up lab-down

run:
	@tests/lab/run.sh

test:
	@tests/lab/test.sh

check: environment
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench:
	@tests/bench/bench.sh

environment:
	@. tests/lab/machine.sh && { [ "$$(id -u)" != 0 ] || install_packages $$PACKAGES; } \
	    && make_environment .venv debian/vendor.txt tests/requirements.txt

lab-up:
	@/usr/bin/python3 tests/lab/lab.py up

lab-down:
	@/usr/bin/python3 tests/lab/lab.py down
