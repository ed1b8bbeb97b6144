"""`ComputeSerializer` and the selection of strategies, at the official package's import path."""

from flux_endpoint.serialize.selection import (
    AllowlistWildcard,
    DeserializerAllowlist,
    Strategylike,
    ValidatedStrategylike,
    validate_strategylike,
)
from flux_endpoint.serialize.serializer import ComputeSerializer

__all__ = [
    "AllowlistWildcard",
    "ComputeSerializer",
    "DeserializerAllowlist",
    "Strategylike",
    "ValidatedStrategylike",
    "validate_strategylike",
]
