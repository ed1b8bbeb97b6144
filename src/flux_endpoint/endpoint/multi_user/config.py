"""A multi-user endpoint's `config.yaml`, and the files beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from flux_endpoint.endpoint.config import parse_as
from flux_endpoint.engine.config import Variable
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.protocol.rest import Principal

#: Names of the files, as the official endpoint has them.
TEMPLATE = "user_config_template.yaml.j2"
SCHEMA = "user_config_schema.json"
ENVIRONMENT = "user_environment.yaml"
EXAMPLE_MAPPING = "example_identity_mapping_config.json"
MAPPING = "identity_mapping_config.json"
#: The files of a multi-user endpoint, beside those of any endpoint, under their usual names.
FILES = frozenset({TEMPLATE, SCHEMA, ENVIRONMENT, EXAMPLE_MAPPING, MAPPING})


class MultiUserConfig(BaseModel):
    """The options of `config.yaml`; relative paths start at the endpoint's directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: What makes it a multi-user endpoint.
    multi_user: Literal[True]
    #: Name shown in lists; default: the endpoint's name.
    display_name: str | None = Field(default=None, min_length=1, max_length=256)
    #: Whether people other than the owner see the endpoint, and, without `users` and `groups`, may
    #: submit to it.
    public: bool = False
    #: Who may submit besides the owner: names of the service's users ("*": all).
    users: list[Principal] | None = Field(default=None, max_length=1000)
    #: The same, as names of groups.
    groups: list[Principal] | None = Field(default=None, max_length=1000)
    #: Which user runs tasks as which local account; root needs it.
    identity_mapping_config_path: str | None = Field(default=None, min_length=1)
    #: The Jinja template of user endpoints' configuration.
    user_config_template_path: str = Field(default=TEMPLATE, min_length=1)
    #: The JSON schema of the values for it; default: `user_config_schema.json`, if it exists.
    user_config_schema_path: str | None = Field(default=None, min_length=1)
    #: Accounts with a lower uid run no tasks: these are the system's.
    min_uid: int = Field(default=1000, ge=1)
    #: The most user endpoints that run at the same time.
    max_user_endpoints: PositiveInt = Field(default=64, le=4096)
    #: The same, of one local account.
    max_user_endpoints_per_user: PositiveInt = Field(default=8, le=4096)
    #: Seconds between two status reports.
    heartbeat_period: float = Field(default=30, ge=1, le=86_400)
    #: Seconds that user endpoints have to end when the endpoint stops.
    shutdown_grace: float = Field(default=15, ge=0)
    #: The least severe messages in the endpoint's log.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: Whether the log has lines of text, or a JSON object in each line.
    log_format: Literal["text", "json"] = "text"


class _Environment(BaseModel):
    model_config = ConfigDict(extra="forbid")

    variables: dict[str, Variable]


class MultiUserFiles:
    """The files of a multi-user endpoint. They are read anew for each use.

    Args:
        directory: the endpoint's directory.
        config: its configuration.
    """

    def __init__(self, directory: Path, config: MultiUserConfig) -> None:
        self.template_path = directory / config.user_config_template_path
        schema = config.user_config_schema_path
        self.schema_path = directory / (schema or SCHEMA)
        self._schema_is_required = schema is not None
        self.environment_path = directory / ENVIRONMENT
        mapping = config.identity_mapping_config_path
        self.mapping_path = None if mapping is None else directory / mapping

    def template(self) -> str:
        """Return the text of the template.

        Raises:
            ConfigurationError: it can't be read, or others can write it.
        """
        return read_trusted(self.template_path)

    def schema(self) -> str | None:
        """Return the text of the schema; `None`: there is none.

        Raises:
            ConfigurationError: it can't be read, or others can write it.
        """
        if not self._schema_is_required and not self.schema_path.exists():
            return None
        return read_trusted(self.schema_path)

    def mapping(self) -> str | None:
        """Return the text of the identity mapping; `None`: there is none.

        Raises:
            ConfigurationError: it can't be read, or others can write it.
        """
        return None if self.mapping_path is None else read_trusted(self.mapping_path)

    def environment(self) -> dict[str, str]:
        """Return the variables of user endpoints, besides those that every account has.

        Raises:
            ConfigurationError: the file is invalid, or others can write it.
        """
        if not self.environment_path.exists():
            return {}
        text = read_trusted(self.environment_path)
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"{self.environment_path}: not valid YAML: {error}") from None
        nested = yaml.safe_dump({"variables": content or {}})
        try:
            variables = parse_as(_Environment, nested, source=str(self.environment_path)).variables
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace("variables.", "")) from None
        own = [name for name in variables if name in OF_THE_ACCOUNT]
        if own:
            raise ConfigurationError(
                f"{self.environment_path}: {', '.join(own)} can't be set here: "
                "the account of each user decides"
            )
        return {name: value for name, value in variables.items() if value is not None}


#: Variables that every user endpoint has from its account.
OF_THE_ACCOUNT = ("HOME", "LOGNAME", "PWD", "SHELL", "USER")


def read_trusted(path: Path) -> str:
    """Return the text of a file that decides what runs as which account.

    Raises:
        ConfigurationError: it can't be read, or an account other than root and this one can change
            it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            state = os.fstat(file.fileno())
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {path}: {error}") from None
    if state.st_uid not in {0, os.geteuid()}:
        raise ConfigurationError(
            f"{path} belongs to another account (uid {state.st_uid}), which could choose what runs "
            "as which user: chown it"
        )
    if stat.S_IMODE(state.st_mode) & 0o022:
        raise ConfigurationError(
            f"other accounts can write {path} (mode {stat.S_IMODE(state.st_mode):04o}), and choose "
            f"what runs as which user: chmod go-w {path}"
        )
    return text
