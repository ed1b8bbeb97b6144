"""The requests that a token permits: an endpoint's own, or those of a user's token's scopes."""

import re
from collections.abc import Iterable
from enum import StrEnum


class TokenScope(StrEnum):
    """The permissions of a user's token. Each scope includes `read`."""

    #: Read the user's own tasks, results, functions and endpoints.
    READ = "read"
    #: Register functions, submit, follow and end tasks.
    SUBMIT = "submit"
    #: Register, lock and delete endpoints, and make their tokens.
    ENDPOINTS = "endpoints"
    #: Read all users' tasks and endpoints, users and limits, below `ADMIN_PREFIX`.
    ADMIN = "admin"


#: Scopes of a token that was made without any.
DEFAULT_SCOPES = frozenset({TokenScope.READ, TokenScope.SUBMIT, TokenScope.ENDPOINTS})
#: Prefix of the routes that need the scope `admin`; without it they answer as if there were none.
ADMIN_PREFIX = "/v3/admin/"

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: Permitted methods and paths; each group is the endpoint's id. A new route must be added here.
_USES = (
    # Registration of an existing id, which returns the queues' URLs; reads of its own state.
    re.compile(f"PUT /v3/endpoints/({_UUID})"),
    re.compile(f"GET /v2/endpoints/({_UUID})"),
    re.compile(f"GET /v[23]/endpoints/({_UUID})/status"),
    re.compile(f"GET /v3/endpoints/({_UUID})/(?:allowed_functions|taken)"),
    # Its owner: an official endpoint asks, and accepts commands of that user only.
    re.compile("GET /auth/v2/oauth2/userinfo"),
)


def endpoint_token_permits(endpoint_id: str, method: str, path: str) -> bool:
    """Return whether an endpoint's token permits a request.

    Args:
        endpoint_id: the endpoint.
        method: HTTP method.
        path: path of the request.
    """
    for use in _USES:
        found = use.fullmatch(f"{method} {path}")
        if found is not None:
            return set(found.groups()) <= {endpoint_id}
    return False


#: Requests other than GET and HEAD that only read: long lists of ids, and queues of results.
_READING = re.compile(
    "POST (?:/v2/batch_status|/v2/taskgroup/[^/]+/(?:results|events)|/v3/page/code)"
)
_SUBMITTING = re.compile(
    "POST /v3/functions|DELETE /v2/functions/[^/]+"
    "|POST /v3/endpoints/[^/]+/(?:submit|attach)|POST /v2/tasks/[^/]+/kill"
    "|POST /v3/tasks/[^/]+/urgency"
    "|POST /v3/cache(?:/find)?|DELETE /v3/cache"
)


def needed_scope(method: str, path: str) -> TokenScope:
    """Return the scope that a request needs; one that is not listed here needs `endpoints`.

    Args:
        method: HTTP method.
        path: path of the request.
    """
    if path.startswith(ADMIN_PREFIX):
        return TokenScope.ADMIN
    request = f"{method} {path}"
    if method in {"GET", "HEAD"} or _READING.fullmatch(request):
        return TokenScope.READ
    return TokenScope.SUBMIT if _SUBMITTING.fullmatch(request) else TokenScope.ENDPOINTS


def known_scopes(names: Iterable[str] | None) -> frozenset[TokenScope]:
    """Return the scopes of a token as it is stored; those of later releases are left out.

    Args:
        names: names of scopes; `None`: the default.
    """
    if names is None:
        return DEFAULT_SCOPES
    found = {TokenScope(each) for each in names if each in set(TokenScope)}
    return frozenset({TokenScope.READ, *found})
