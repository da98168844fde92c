"""`python3 -m podyd.client` is `pody`."""

import sys

from podyd.client.main import main

sys.exit(main())
