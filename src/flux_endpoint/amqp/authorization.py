"""How RabbitMQ asks another program who may do what: its HTTP authorization backend."""

from __future__ import annotations

#: What RabbitMQ asks about, in this order; the last part of the path of a question.
QUESTIONS = ("user", "vhost", "resource", "topic")

#: Seconds for which RabbitMQ keeps an answer that allows something.
CACHE_SECONDS = 10

#: Seconds that RabbitMQ waits for an answer.
REQUEST_SECONDS = 10

#: The plugins: the backend, what keeps its answers, and what closes connections on request.
PLUGINS = ("rabbitmq_auth_backend_http", "rabbitmq_auth_backend_cache", "rabbitmq_management")


def configuration(url: str) -> dict[str, str]:
    """Return the settings of `rabbitmq.conf` by which RabbitMQ asks at `url`.

    Accounts that RabbitMQ itself has come first: whoever answers can connect without being asked.
    """
    return {
        "auth_backends.1": "internal",
        "auth_backends.2": "cache",
        "auth_cache.cached_backend": "http",
        "auth_cache.cache_ttl": str(1000 * CACHE_SECONDS),
        "auth_http.http_method": "post",
        "auth_http.request_timeout": str(1000 * REQUEST_SECONDS),
        "auth_http.connection_timeout": str(1000 * REQUEST_SECONDS),
        **{f"auth_http.{each}_path": f"{url.rstrip('/')}/{each}" for each in QUESTIONS},
    }
