"""`python -m dfqkit.cli`, for where the script `dfqkit` is not on the path."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
