"""`SerializationStrategy` and its kin, where the official package has them."""

from flux_endpoint.serialize.combined import ComboSerializationStrategy
from flux_endpoint.serialize.strategies import IDENTIFIER_LENGTH, SerializationStrategy

__all__ = ["IDENTIFIER_LENGTH", "ComboSerializationStrategy", "SerializationStrategy"]
