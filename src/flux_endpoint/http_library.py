"""httpx without its command line, whose libraries take as long to import as all the rest of it.

Import httpx from here: `from flux_endpoint.http_library import httpx`.
"""

from __future__ import annotations

import sys

__all__ = ["httpx"]

_COMMAND_LINE = "httpx._main"
_hide = _COMMAND_LINE not in sys.modules
if _hide:
    # It counts as not installed, for which httpx is prepared.
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]  # what the import system provides for
try:
    import httpx
finally:
    if _hide:
        del sys.modules[_COMMAND_LINE]
