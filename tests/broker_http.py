"""Frequent `rabbitmqctl` commands by RabbitMQ's management API: `rabbitmqctl` takes seconds."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx


class ManagementApi:
    """Runs some commands of `rabbitmqctl`.

    Args:
        url: URL of the API.
        amqp_url: AMQP URL with an account that has the tag `administrator`.
    """

    def __init__(self, url: str, amqp_url: str) -> None:
        account = urlsplit(amqp_url)
        self._client = httpx.Client(
            base_url=f"{url}/api/",
            auth=(unquote(account.username or ""), unquote(account.password or "")),
            timeout=60,
            trust_env=False,
        )

    def run(self, *command: str) -> bool:
        """Run a command; return `False` if it is not supported here."""
        match command:
            case ("add_vhost", vhost):
                self._put(("vhosts", vhost), {})
            case ("delete_vhost", vhost):
                self._delete(("vhosts", vhost))
            case ("set_permissions", "-p", vhost, user, configure, write, read):
                what = {"configure": configure, "write": write, "read": read}
                self._put(("permissions", vhost, user), what)
            case ("add_user" | "change_password", user, password):
                self._put(("users", user), {"password": password, "tags": ""})
            case ("delete_user", user):
                self._delete(("users", user))
            case ("close_all_connections", "--vhost", vhost, reason):
                self._close(vhost, reason)
            case _:
                return False
        return True

    def _put(self, path: tuple[str, ...], what: dict[str, Any]) -> None:
        self._client.put(_path(path), json=what).raise_for_status()

    def _delete(self, path: tuple[str, ...]) -> None:
        self._client.delete(_path(path)).raise_for_status()

    def _close(self, vhost: str, reason: str) -> None:
        # Without statistics, which are disabled.
        answer = self._client.get("connections?disable_stats=true&columns=name,vhost")
        for each in answer.raise_for_status().json():
            if each.get("vhost") == vhost:
                path = _path(("connections", each["name"]))
                closed = self._client.delete(path, headers={"X-Reason": reason})
                if closed.status_code != httpx.codes.NOT_FOUND:  # it had closed by itself
                    closed.raise_for_status()


def _path(parts: tuple[str, ...]) -> str:
    return "/".join(quote(part, safe="") for part in parts)
