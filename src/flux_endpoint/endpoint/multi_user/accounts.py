"""Local accounts, and the processes that root starts as them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.endpoint.multi_user.mapping import IdentityMapping
from flux_endpoint.errors import FluxEndpointError

#: Where programs are searched, unless `user_environment.yaml` says otherwise.
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
#: Shells of accounts that nobody works with.
_NO_LOGIN = frozenset({"false", "nologin"})


class NoAccountError(FluxEndpointError):
    """A user has no local account here; the text is for the user."""


@dataclass(frozen=True)
class LocalAccount:
    """An account of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str
    full_name: str

    @classmethod
    def named(cls, name: str) -> LocalAccount | None:
        """Return the account with a name, or `None`."""
        try:
            return cls._of(pwd.getpwnam(name))
        except (KeyError, ValueError):  # a name with a NUL character, for example
            return None

    @classmethod
    def own(cls) -> LocalAccount:
        """Return the account of this process.

        Raises:
            NoAccountError: its uid has no entry in the system's list of accounts.
        """
        try:
            return cls._of(pwd.getpwuid(os.geteuid()))
        except KeyError:
            raise NoAccountError(
                f"this process's account (uid {os.geteuid()}) has no entry in /etc/passwd"
            ) from None

    @classmethod
    def _of(cls, entry: pwd.struct_passwd) -> LocalAccount:
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return cls(
            entry.pw_name,
            entry.pw_uid,
            entry.pw_gid,
            groups,
            entry.pw_dir,
            entry.pw_shell or "/bin/sh",
            entry.pw_gecos,
        )

    def shown(self) -> dict[str, Any]:
        """Return the account as templates see it, in `mapped_identity.local`."""
        return {
            "uname": self.name,
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "dir": self.home,
            "shell": self.shell,
            "gecos": self.full_name,
        }

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of the account's processes.

        Args:
            variables: variables in addition to those of the account.
        """
        return {
            "PATH": DEFAULT_PATH,
            "LANG": "C.UTF-8",
            **variables,
            "HOME": self.home,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "USER": self.name,
        }

    def identity(self) -> dict[str, Any]:
        """Return the arguments of `subprocess.Popen` that make a process this account's.

        It loses all groups and rights of root, and can't get them back: real, effective and saved
        ids are set. Empty if this process is not root's.
        """
        if os.geteuid() != 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups}


class Accounts:
    """Decides which user runs tasks as which account.

    Args:
        owner: name of the endpoint's owner at the service.
        users: users that may run tasks as the account of this process, if that is not root's;
            "*": all whom the service permits it.
        min_uid: accounts with a lower uid run no tasks.
    """

    def __init__(self, owner: str, users: Iterable[str], min_uid: int) -> None:
        self._users = frozenset({owner, *users})
        self._min_uid = min_uid

    def account(
        self,
        user: str,
        identities: Iterable[Mapping[str, Any]],
        mapping: IdentityMapping | None,
    ) -> LocalAccount:
        """Return the local account of a user.

        Args:
            user: name of the user at the service.
            identities: the user's identities at the service.
            mapping: the identity mapping; `None`: there is none.

        Raises:
            NoAccountError: there is none, or this process can't start processes as it.
        """
        if mapping is None:
            return self._shared(user)
        names = list(dict.fromkeys(mapping.accounts(identities)))
        found = next(filter(None, map(LocalAccount.named, names)), None)
        if found is None:
            why = (
                f"it is mapped to {', '.join(map(repr, names))}, which does not exist there"
                if names
                else "the endpoint's identity mapping has no rule for it"
            )
            raise NoAccountError(f"user {user!r} has no local account: {why}")
        what = f"user {user!r} is mapped to the local account {found.name!r}"
        if found.uid == 0 or found.gid == 0 or found.uid < self._min_uid:
            raise NoAccountError(
                f"{what}, which runs no tasks: its uid {found.uid} is less than "
                f"{self._min_uid} (min_uid), or its group is root's"
            )
        if Path(found.shell).name in _NO_LOGIN:
            raise NoAccountError(f"{what}, which runs no tasks: its shell is {found.shell}")
        if os.geteuid() not in {0, found.uid}:
            raise NoAccountError(
                f"{what}, and only root can start an endpoint for it: this endpoint runs as "
                "another account"
            )
        return found

    def _shared(self, user: str) -> LocalAccount:
        if os.geteuid() == 0:
            raise NoAccountError("the endpoint has no identity mapping, and root runs no tasks")
        if not {user, "*"} & self._users:
            raise NoAccountError(
                f"user {user!r} is not among those who may run tasks as the account of this "
                "endpoint: its owner, and the users: in its config.yaml"
            )
        return LocalAccount.own()
