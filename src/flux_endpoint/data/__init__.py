"""Arguments and results that are too large for messages: kept in a store, sent as references."""

from flux_endpoint.data.connectors import ConnectorStore
from flux_endpoint.data.directory import SharedDirectory
from flux_endpoint.data.references import is_reference
from flux_endpoint.data.stores import DataStore, StoredData

__all__ = ["ConnectorStore", "DataStore", "SharedDirectory", "StoredData", "is_reference"]
