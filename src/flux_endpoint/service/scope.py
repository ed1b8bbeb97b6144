"""The requests that an endpoint's token permits: those that the endpoint makes for itself."""

import re

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
