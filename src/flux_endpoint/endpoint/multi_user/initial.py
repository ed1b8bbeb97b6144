"""The files that `flux-endpoint configure --multi-user` writes."""

from __future__ import annotations

import json

from flux_endpoint.endpoint.multi_user.config import (
    ENVIRONMENT,
    EXAMPLE_MAPPING,
    SCHEMA,
    TEMPLATE,
)

_CONFIG = """\
# Configuration of the multi-user endpoint {name}. Lines that are commented out show the defaults.
# It runs no tasks itself: for each user, and each user_endpoint_config, it starts a user endpoint,
# whose configuration is made from {template} (see docs/multi-user.md).
multi_user: true

# Name shown in lists.
display_name: {display_name}

# Which user of the service runs tasks as which account of this machine. Root needs it; the file
# {example} shows its form. Without it, the endpoint
# must run as an account other than root, and everybody's tasks run as that account.
{mapping}
# Accounts with a lower uid run no tasks.
# min_uid: 1000

# Who may see it and submit to it: true means everybody who has a token of the service.
# public: false
# Or only these: users of the service ("*": all), and groups of them.
# users: [ada@example.org]
# groups: [chemistry]

# The most user endpoints at the same time: of all users, and of one account.
# max_user_endpoints: 64
# max_user_endpoints_per_user: 8

# heartbeat_period: 30      # seconds
# shutdown_grace: 15        # seconds that user endpoints have to end when this one stops
# log_level: INFO           # DEBUG, INFO, WARNING or ERROR
# log_format: text          # or json
"""

_TEMPLATE = """\
{{#- Configuration of the user endpoints of {name}: the options of an endpoint's config.yaml, with
the user's values, which are those of user_endpoint_config. It is a Jinja template: what stands
between double braces becomes a quoted YAML value. Try it: flux-endpoint render {name} nodes=2 -#}}

engine:
  type: FluxEngine
  executor: auto
  worker_init: {{{{ worker_init | default("") }}}}
{{% if nodes is defined %}}
  blocks:
    nodes_per_block: {{{{ nodes }}}}
    walltime: {{{{ walltime | default("1h") }}}}
{{% endif %}}

# A user endpoint ends after this time without a task; the next task starts it again.
stop_when_idle: 5m
"""

_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "nodes": {"type": "integer", "minimum": 1, "maximum": 16},
        "walltime": {"type": "string", "pattern": "^[0-9]+(s|m|h|d)?$"},
        "worker_init": {"type": "string"},
    },
    "dependentRequired": {"walltime": ["nodes"]},
    "additionalProperties": False,
}

_ENVIRONMENT = """\
# Variables of user endpoints, one `NAME: value` a line. They have HOME, LOGNAME, SHELL and USER of
# their account, a PATH of /usr/local/bin:/usr/bin:/bin unless it is set here, and nothing else.
# FLUX_URI: local:///run/flux/local
"""

_MAPPING = [
    {
        "comment": "ada@example.org runs tasks as the account ada. The first matching rule counts "
        "whose account exists.",
        "DATA_TYPE": "expression_identity_mapping#1.0.0",
        "mappings": [
            {"source": "{username}", "match": "grace@example\\.com", "output": "hopper"},
            {"source": "{username}", "match": "([a-z]+)@example\\.org", "output": "{0}"},
        ],
    }
]


def initial_files(name: str, display_name: str | None, *, is_root: bool) -> dict[str, str]:
    """Return the texts of a new multi-user endpoint's files, by name; `config.yaml` is first.

    Args:
        name: the endpoint's name.
        display_name: its name in lists; default: `name`.
        is_root: whether root runs it, so that it needs an identity mapping.
    """
    mapping = "identity_mapping_config_path: identity_mapping_config.json"
    config = _CONFIG.format(
        name=name,
        display_name=json.dumps(display_name or name, ensure_ascii=False),
        template=TEMPLATE,
        example=EXAMPLE_MAPPING,
        mapping=mapping if is_root else f"# {mapping}",
    )
    return {
        "config.yaml": config,
        TEMPLATE: _TEMPLATE.format(name=name),
        SCHEMA: json.dumps(_SCHEMA, indent=2) + "\n",
        ENVIRONMENT: _ENVIRONMENT,
        EXAMPLE_MAPPING: json.dumps(_MAPPING, indent=2) + "\n",
    }
