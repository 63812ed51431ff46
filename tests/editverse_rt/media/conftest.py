"""Lets the tests of media import `media_samples`, which stands beside them, from wherever they were copied to."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
