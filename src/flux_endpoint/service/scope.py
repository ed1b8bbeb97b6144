"""What the token of an endpoint is good for: to be that endpoint."""

import re

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: Methods and paths; a group is the endpoint's id. No new route is among them by itself.
_USES = (
    # Registering again, which gives the URLs of its queues; whether it is still known.
    re.compile(f"PUT /v3/endpoints/({_UUID})"),
    re.compile(f"GET /v2/endpoints/({_UUID})"),
    re.compile(f"GET /v[23]/endpoints/({_UUID})/status"),
    re.compile(f"GET /v3/endpoints/({_UUID})/(?:allowed_functions|taken)"),
    # Whose it is: an official endpoint asks, to take commands of that user only.
    re.compile("GET /auth/v2/oauth2/userinfo"),
)


def is_good_for(endpoint_id: str, method: str, path: str) -> bool:
    """Return whether a request is one that the endpoint makes as itself."""
    for use in _USES:
        found = use.fullmatch(f"{method} {path}")
        if found is not None:
            return set(found.groups()) <= {endpoint_id}
    return False
