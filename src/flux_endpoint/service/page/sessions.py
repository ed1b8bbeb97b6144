"""Logins to the page: a code that is valid once and for a moment, and then a cookie.

Both name the hash of a token of the service, not the token, and carry an expiry and a keyed hash.
They say who logged in; whether the token is still valid is looked up at each request. Neither is a
credential of the REST API.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable

#: Seconds for which a login code is valid.
CODE_SECONDS = 120
#: Seconds after which a session ends.
SESSION_SECONDS = 12 * 3600

_CODE, _SESSION = b"code", b"session"
# Bytes of a token's hash, an expiry, a random number and the keyed hash of all three.
_HASH, _EXPIRY, _NONCE, _MAC = 32, 5, 8, 16
#: Maximum number of used codes that are remembered: those of two minutes.
_MOST_USED = 10_000


class Sessions:
    """Issues and checks codes and sessions. Safe to use from several threads.

    Args:
        key: the service's secret key, the same in all services that share a database.
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(key, b"page", "sha256")
        self._clock = clock
        self._lock = threading.Lock()
        #: Keyed hashes of used codes, and when these expire anyway. Not the codes: the same one can
        #: be spelled in several ways in base64.
        self._used: dict[bytes, float] = {}
        #: A name for the cookie, so that two services of one host do not share it.
        self.cookie = f"flux_endpoint_{hmac.digest(self._key, b'cookie', 'sha256').hex()[:8]}"

    def code(self, token_hash: str) -> str:
        """Return a new login code for the holder of a token.

        Args:
            token_hash: SHA-256 of the token, hexadecimal.
        """
        return self._seal(_CODE, token_hash, CODE_SECONDS)

    def redeem(self, code: str) -> str | None:
        """Return the token's hash of a login code; `None` if it is not valid or was used."""
        opened = self._open(_CODE, code)
        if opened is None:
            return None
        token_hash, expires, mac = opened
        with self._lock:
            now = self._clock()
            for each in [each for each, until in self._used.items() if until <= now]:
                del self._used[each]
            if mac in self._used or len(self._used) >= _MOST_USED:
                return None
            self._used[mac] = expires
        return token_hash

    def session(self, token_hash: str) -> str:
        """Return a new session's cookie for the holder of a token."""
        return self._seal(_SESSION, token_hash, SESSION_SECONDS)

    def token_hash(self, cookie: str) -> str | None:
        """Return the token's hash of a session; `None` if its cookie is not valid."""
        opened = self._open(_SESSION, cookie)
        return None if opened is None else opened[0]

    def _seal(self, kind: bytes, token_hash: str, seconds: float) -> str:
        expires = int(self._clock() + seconds).to_bytes(_EXPIRY, "big")
        said = bytes.fromhex(token_hash) + expires + secrets.token_bytes(_NONCE)
        return urlsafe_b64encode(said + self._mac(kind, said)).decode().rstrip("=")

    def _open(self, kind: bytes, text: str) -> tuple[str, float, bytes] | None:
        try:
            sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            return None
        said, mac = sealed[:-_MAC], sealed[-_MAC:]
        # Only what `_seal` has written has such a code.
        if not hmac.compare_digest(mac, self._mac(kind, said)):
            return None
        expires = int.from_bytes(said[_HASH : _HASH + _EXPIRY], "big")
        return None if expires <= self._clock() else (said[:_HASH].hex(), float(expires), mac)

    def _mac(self, kind: bytes, said: bytes) -> bytes:
        return hmac.digest(self._key, kind + said, "sha256")[:_MAC]
