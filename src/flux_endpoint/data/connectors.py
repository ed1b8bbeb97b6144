"""A store that ProxyStore's connectors reach: Redis, files, and others."""

from __future__ import annotations

import hashlib
import pickle
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from flux_endpoint.data import known_stores
from flux_endpoint.data.objects import Buffer, EncodedObject
from flux_endpoint.data.references import Place
from flux_endpoint.data.stores import DEFAULT_THRESHOLD, DataStore, damaged, shown_size
from flux_endpoint.errors import DataStoreError


class Connector(Protocol):
    """The used part of the protocol `proxystore.connectors.protocols.Connector`."""

    def put(self, obj: Any) -> Any:
        """Store bytes, and return their key."""

    def get(self, key: Any) -> Any:
        """Return the bytes; `None`: there are none."""

    def evict(self, key: Any) -> None:
        """Remove the bytes."""

    def config(self) -> dict[str, Any]:
        """Return what makes the same connector elsewhere."""


class ConnectorStore(DataStore):
    """A store behind a connector of ProxyStore; the extra `proxystore` installs that package.

    References have the connector's class and configuration, so workers make their own. The
    package must be installed at the endpoint, too.

    Args:
        connector: the connector. It is never closed here: closing some removes all that they keep.
        lifetime: see `DataStore`. Connectors know none: endpoints of this user on this machine, and
            `flux-endpoint data prune`, remove what has expired.
        threshold: see `DataStore`.

    Attributes:
        connector: the connector.

    Raises:
        TypeError: `connector` is not one.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        lifetime: float | str,
        threshold: float | str = DEFAULT_THRESHOLD,
    ) -> None:
        super().__init__(lifetime, threshold)
        lacking = [
            name
            for name in ("put", "get", "evict", "config", "from_config")
            if not callable(getattr(connector, name, None))
        ]
        if lacking:
            raise TypeError(
                f"expected a connector of ProxyStore, got {type(connector).__name__}, which has no "
                f"{', '.join(lacking)}: see proxystore.connectors"
            )
        self.connector = connector

    def __repr__(self) -> str:
        return f"ConnectorStore({self.connector!r}, {self._settings})"

    def __reduce__(self) -> tuple[Any, ...]:
        kind, config = type(self.connector), self.connector.config()
        return _made, (kind, config, self.lifetime, self.threshold)

    def _keep(self, data: EncodedObject, lifetime: float) -> tuple[Place, int]:
        content = b"".join(data.parts())
        digest = hashlib.sha256(content).hexdigest()
        try:
            key = self.connector.put(content)
            config = self.connector.config()
        except Exception as error:
            raise DataStoreError(
                f"{self.connector!r} can't store {shown_size(len(content))}: "
                f"{type(error).__name__}: {error}"
            ) from error
        place = ConnectorPlace(type(self.connector), config, key, digest)
        try:
            known_stores.note_object(pickle.dumps(place), lifetime)
        except DataStoreError:
            with suppress(DataStoreError):
                place.remove()
            raise
        return place, len(content)


def _made(kind: Any, config: dict[str, Any], lifetime: float, threshold: float) -> ConnectorStore:
    return ConnectorStore(connector_of(kind, config), lifetime=lifetime, threshold=threshold)


#: The connectors that this process has made, the latest last.
_connectors: dict[str, Connector] = {}
_MOST_CONNECTORS = 16


def connector_of(kind: Any, config: dict[str, Any]) -> Connector:
    """Return a connector; the same one for the same configuration.

    Args:
        kind: its class.
        config: its configuration.
    """
    key = repr((kind, config))
    if key not in _connectors:
        if len(_connectors) >= _MOST_CONNECTORS:
            del _connectors[next(iter(_connectors))]
        _connectors[key] = kind.from_config(config)
    return _connectors[key]


@dataclass(frozen=True)
class ConnectorPlace(Place):
    """An object that a connector keeps.

    Attributes:
        kind: the connector's class.
        config: its configuration.
        key: the connector's key of the object.
        digest: SHA-256 of the content.
    """

    kind: Any
    config: dict[str, Any]
    key: Any
    digest: str

    def __str__(self) -> str:
        return f"{self.digest[:8]} behind {self.kind.__name__}"

    def read(self) -> Buffer:
        """Return the bytes."""
        content = self._with_connector("read", lambda connector: connector.get(self.key))
        if content is None:
            raise DataStoreError(
                f"{self} is not there: its lifetime is over, it was deleted, or the connector's "
                "store is another one on this machine"
            )
        found = bytearray(content)  # arrays in it can be changed
        if hashlib.sha256(found).hexdigest() != self.digest:
            raise damaged(str(self))
        return found

    def remove(self) -> None:
        """Remove the bytes."""
        self._with_connector("removed", lambda connector: connector.evict(self.key))

    def _with_connector(self, done: str, action: Any) -> Any:
        try:
            return action(connector_of(self.kind, self.config))
        except Exception as error:
            raise DataStoreError(
                f"{self} can't be {done}: {type(error).__name__}: {error}"
            ) from error
