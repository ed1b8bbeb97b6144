"""`ComputeSerializer` and what selects strategies, where the official package has them."""

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
