"""python -m gplfast."""

from __future__ import annotations

import sys

from gplfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
