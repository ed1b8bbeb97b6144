"""The service's parts as a dependency of every route."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from flux_endpoint.service.access.control import BrokerAccess
from flux_endpoint.service.audit import ServiceAudit
from flux_endpoint.service.changes import ChangeListener
from flux_endpoint.service.dependents import Dependents
from flux_endpoint.service.duplicate_submissions import DuplicateSubmissions
from flux_endpoint.service.official import OfficialEndpoints
from flux_endpoint.service.page.sessions import Sessions
from flux_endpoint.service.quotas import Quotas
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.task_publisher import TaskPublisher
from flux_endpoint.service.token_use import TokenUse


@dataclass(frozen=True)
class ServiceContext:
    """The parts of a running service."""

    settings: ServiceSettings
    database: Database
    publisher: TaskPublisher
    official: OfficialEndpoints
    dependents: Dependents
    quotas: Quotas
    audit: ServiceAudit
    access: BrokerAccess
    changes: ChangeListener
    sessions: Sessions
    token_use: TokenUse
    repeats: DuplicateSubmissions = field(default_factory=DuplicateSubmissions)


# async, since FastAPI would run a plain function in another thread for each request.
async def _context(request: Request) -> ServiceContext:
    context = request.app.state.context
    assert isinstance(context, ServiceContext)
    return context


Service = Annotated[ServiceContext, Depends(_context)]
