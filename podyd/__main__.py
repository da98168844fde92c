"""`python3 -m podyd` is `podyd`."""

import sys

from podyd.cli.main import main

sys.exit(main())
