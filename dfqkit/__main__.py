"""`python -m dfqkit`, for where the script `dfqkit` is not on the path."""

from __future__ import annotations

import sys

from dfqkit.cli import main

sys.exit(main())
