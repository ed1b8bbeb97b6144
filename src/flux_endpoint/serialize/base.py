"""`SerializationStrategy` and related classes, at the official package's import path."""

from flux_endpoint.serialize.combined import ComboSerializationStrategy
from flux_endpoint.serialize.strategies import IDENTIFIER_LENGTH, SerializationStrategy

__all__ = ["IDENTIFIER_LENGTH", "ComboSerializationStrategy", "SerializationStrategy"]
