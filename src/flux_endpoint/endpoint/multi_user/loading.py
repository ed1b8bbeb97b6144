"""Reads a multi-user endpoint's configuration, and makes its agent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from flux_endpoint import __version__, extras
from flux_endpoint.endpoint.config import (
    EndpointConfig,
    declares_multi_user,
    parse_as,
    parse_config,
)
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.endpoint.enrolment import Enrolment
from flux_endpoint.endpoint.host import LoadedEndpoint
from flux_endpoint.endpoint.multi_user.accounts import Accounts
from flux_endpoint.endpoint.multi_user.agent import MultiUserAgent
from flux_endpoint.endpoint.multi_user.config import MultiUserConfig, MultiUserFiles, read_trusted
from flux_endpoint.endpoint.multi_user.mapping import IdentityMapping
from flux_endpoint.endpoint.registration import BrokerUrl, common_metadata
from flux_endpoint.endpoint.status import AgentStatus
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.protocol.queues import EndpointQueues


def load(directory: EndpointDirectory, text: str) -> LoadedEndpoint:
    """Return a multi-user endpoint, ready to be registered.

    Args:
        directory: the endpoint's directory.
        text: the text of its `config.yaml`.

    Raises:
        ConfigurationError: one of its files is missing or invalid, other accounts can write it, or
            root has no identity mapping.
    """
    config, files = read(directory, text)
    template, schema = files.template(), files.schema()
    if os.geteuid() == 0:
        read_trusted(directory.config)

    def new_agent(
        queues: EndpointQueues, enrolment: Enrolment, on_status: Callable[[AgentStatus], None]
    ) -> MultiUserAgent:
        owner = str(enrolment.rest.request("GET", f"/v2/endpoints/{queues.endpoint_id}")["owner"])
        # The service checks who is in a group.
        users = ["*"] if config.groups else config.users or []
        return MultiUserAgent(
            queues,
            config,
            files,
            Accounts(owner, users, config.min_uid),
            url=BrokerUrl(queues, enrolment.renew),
            on_status=on_status,
        )

    return LoadedEndpoint(
        log_level=config.log_level,
        log_format=config.log_format,
        has_other_users=files.mapping_path is None and bool(config.users or config.groups),
        registration=_registration(directory.name, config, text, template, schema),
        new_agent=new_agent,
    )


def load_any(directory: EndpointDirectory) -> EndpointConfig | MultiUserConfig:
    """Return an endpoint's configuration, of either kind.

    Raises:
        ConfigurationError: it, or a file that it names, is invalid.
    """
    try:
        text = directory.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {directory.config}: {error}") from None
    if declares_multi_user(text):
        return read(directory, text)[0]
    return parse_config(text, source=str(directory.config))


def read(directory: EndpointDirectory, text: str) -> tuple[MultiUserConfig, MultiUserFiles]:
    """Return the configuration, and the files that it names, which are checked.

    Args:
        directory: the endpoint's directory.
        text: the text of its `config.yaml`.

    Raises:
        ConfigurationError: as `load`.
    """
    config = parse_as(MultiUserConfig, text, source=str(directory.config))
    extras.require("multi-user", "a multi-user endpoint")
    files = MultiUserFiles(directory.path, config)
    files.template()
    files.environment()
    schema, mapping = files.schema(), files.mapping()
    if schema is not None:
        try:
            json.loads(schema)
        except ValueError as error:
            raise ConfigurationError(f"{files.schema_path}: not valid JSON: {error}") from None
    if mapping is not None:
        IdentityMapping(mapping, source=str(files.mapping_path))
    elif os.geteuid() == 0:
        raise ConfigurationError(
            f"{directory.config}: a multi-user endpoint of root needs an identity mapping, which "
            "says who runs tasks as which account: set identity_mapping_config_path (see "
            "docs/multi-user.md)"
        )
    return config, files


def _registration(
    name: str, config: MultiUserConfig, text: str, template: str, schema: str | None
) -> dict[str, Any]:
    request: dict[str, Any] = {
        "endpoint_name": name,
        "display_name": config.display_name or name,
        "multi_user": True,
        "public": config.public,
        "metadata": {
            **common_metadata(text),
            "user_endpoints_version": __version__,
            "output_on_request": True,
            "user_config_template": template,
            "user_config_schema": None if schema is None else json.loads(schema),
        },
    }
    for key in ("users", "groups"):
        if (value := getattr(config, key)) is not None:
            request[key] = value
    return request
