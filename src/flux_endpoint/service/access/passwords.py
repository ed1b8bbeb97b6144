"""The passwords of accounts, which are derived from a secret and not stored."""

import hashlib
import hmac
from base64 import urlsafe_b64encode


class Passwords:
    """The passwords of all accounts.

    Args:
        key: the service's secret, from which they are derived.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, name: str) -> str:
        """Return the password of the account `name`: letters, digits, `-` and `_`."""
        digest = hmac.digest(self._key, name.encode(), hashlib.sha256)
        return urlsafe_b64encode(digest).rstrip(b"=").decode()

    def is_right(self, name: str, password: str) -> bool:
        """Return whether a password is correct; the comparison takes constant time.

        Args:
            name: name of the account.
            password: the password to check.
        """
        return hmac.compare_digest(self.of(name).encode(), password.encode())
