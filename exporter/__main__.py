"""`python -m exporter COMMAND` in a checkout: the same command line as `edgellama COMMAND`."""

from __future__ import annotations

import sys

from edgellama.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
