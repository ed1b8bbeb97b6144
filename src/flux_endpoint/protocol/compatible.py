"""The official release whose behaviour this project has, as endpoints and clients say it."""

from __future__ import annotations

from typing import Final

#: Release of `globus-compute-sdk`.
COMPATIBLE_SDK: Final = "4.19.0"
#: Release of `globus-sdk`, on which that one stands.
COMPATIBLE_GLOBUS_SDK: Final = "4.10.0"
