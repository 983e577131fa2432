"""`python -m jaxprune` is the `jaxprune` command."""

import sys

from jaxprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
