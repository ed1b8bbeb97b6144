"""The passwords of accounts: none is stored."""

import hashlib
import hmac
from base64 import urlsafe_b64encode


class Passwords:
    """The passwords of all accounts.

    Args:
        key: the secret of this service that they are derived from.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, name: str) -> str:
        """Return the password of the account `name`: letters, digits, `-` and `_`."""
        digest = hmac.digest(self._key, name.encode(), hashlib.sha256)
        return urlsafe_b64encode(digest).rstrip(b"=").decode()

    def is_right(self, name: str, password: str) -> bool:
        """Return whether `password` is that of the account `name`, in constant time."""
        return hmac.compare_digest(self.of(name).encode(), password.encode())
