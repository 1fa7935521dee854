"""``python -m falcon_fast``: the same as the command ``falcon-fast``."""

from __future__ import annotations

import sys

from falcon_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
