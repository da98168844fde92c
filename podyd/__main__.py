"""`python3 -m podyd` is `podyd`, and so is what pip installs.

`pip install podyd` is the members' client alone; without the server's libraries, `podyd` says how
to have them.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run `podyd`."""
    try:
        from podyd.cli.main import main as run

        return run()
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"podyd: The server needs the Python module {error.name}, which is not here; members"
            " use 'pody'. To have all of it: apt install podyd, or, in podyd's source, pip install"
            " '.[server]'.\n"
        )
        return 78


if __name__ == "__main__":
    sys.exit(main())
