"""Makes `samples` importable by its name, which is what travels when it is pickled."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
