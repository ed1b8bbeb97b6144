"""The protocol of RabbitMQ's HTTP authorization backend, which asks another program."""

from __future__ import annotations

#: The kinds of RabbitMQ's questions, in their order; each is the last part of a request's path.
QUESTIONS = ("user", "vhost", "resource", "topic")

#: Seconds for which RabbitMQ caches a positive answer.
CACHE_SECONDS = 10

#: Seconds that RabbitMQ waits for an answer.
REQUEST_SECONDS = 10

#: The plugins: the backend, its cache, and the one that closes connections on request.
PLUGINS = ("rabbitmq_auth_backend_http", "rabbitmq_auth_backend_cache", "rabbitmq_management")


def configuration(url: str) -> dict[str, str]:
    """Return the settings of `rabbitmq.conf` with which RabbitMQ asks at `url`.

    RabbitMQ's own accounts take precedence, so the program that answers can connect by itself.
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
