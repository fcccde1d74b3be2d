"""`python -m sealwright.cli`: the same as `sealwright`."""

import sys

from sealwright.cli import main

sys.exit(main())
