"""The official releases whose behaviour this project implements, as it reports them."""

from __future__ import annotations

from typing import Final

#: Release of `globus-compute-sdk`.
COMPATIBLE_SDK: Final = "4.19.0"
#: Release of `globus-sdk`, which that release depends on.
COMPATIBLE_GLOBUS_SDK: Final = "4.10.0"
