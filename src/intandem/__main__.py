"""``python -m intandem`` is the ``intandem`` command."""

from __future__ import annotations

import sys

from intandem.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
