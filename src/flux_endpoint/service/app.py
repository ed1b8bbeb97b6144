"""The ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from flux_endpoint.service import errors
from flux_endpoint.service.access.control import BrokerAccess, broker_access
from flux_endpoint.service.audit import ServiceAudit, default_path
from flux_endpoint.service.bodies import Bodies
from flux_endpoint.service.broker import Broker
from flux_endpoint.service.changes import Changes
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.disconnects import WatchedSubmissions
from flux_endpoint.service.fresh_reports import FreshReports
from flux_endpoint.service.health import HealthCheck
from flux_endpoint.service.identity import Authentication
from flux_endpoint.service.live_output import LiveOutput
from flux_endpoint.service.metrics import (
    CountedRequests,
    Exposition,
    NotedRoutes,
    ServiceCounters,
)
from flux_endpoint.service.page.live import LiveListeners
from flux_endpoint.service.page.output_stream import OutputStreams
from flux_endpoint.service.page.reports import ReportRequests
from flux_endpoint.service.page.sessions import Sessions
from flux_endpoint.service.quotas import Quotas, RequestRate
from flux_endpoint.service.request_target import AbsoluteTargets
from flux_endpoint.service.retention import Retention
from flux_endpoint.service.routes import (
    administration,
    amqp,
    attach,
    auth,
    cache,
    endpoint_tokens,
    endpoints,
    events,
    functions,
    health,
    kill,
    metrics,
    operations,
    output,
    page,
    submit,
    taken,
    tasks,
    version,
)
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.accounts import account_key
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.sweep import Keep
from flux_endpoint.service.token_use import TokenUse


def create_app(settings: ServiceSettings, access: BrokerAccess | None = None) -> FastAPI:
    """Return the service as an ASGI application.

    On startup it migrates the database. It serves requests while the broker is unreachable, too.

    Args:
        settings: the service's settings.
        access: access control for the broker, already started; by default the application creates
            and starts it. The application closes it on shutdown.
    """
    counted = CollectorRegistry()
    counters = ServiceCounters(counted)
    listeners, fresh_reports, live_output = LiveListeners(), FreshReports(), LiveOutput()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url)
        keep = Keep(settings.keep_tasks, settings.keep_functions, settings.keep_user_results)
        retention = Retention(database, keep)
        await to_thread.run_sync(database.migrate)
        at_broker = access
        if at_broker is None:
            at_broker = await to_thread.run_sync(broker_access, settings)
            at_broker.start()
        changes = Changes(counters, retention, listeners, fresh_reports, live_output)
        broker = Broker(settings, database, at_broker, changes, live_output)
        broker.start()
        retention.start()
        app.state.observer = broker.observer
        app.state.health = HealthCheck(database, broker.observer)
        app.state.metrics = Exposition(counted, database, broker.observer)
        audit = ServiceAudit(settings.audit_log or default_path(settings.database_url))
        app.state.context = ServiceContext(
            settings,
            database,
            broker.publisher,
            broker.official,
            broker.dependents,
            Quotas(settings),
            audit,
            at_broker,
            changes,
            Sessions(await to_thread.run_sync(_key, database)),
            TokenUse(database),
        )
        try:
            yield
        finally:
            await to_thread.run_sync(broker.close)
            await to_thread.run_sync(at_broker.close)
            await to_thread.run_sync(retention.close)
            database.close()
            audit.close()

    # No schema pages: they load scripts from other hosts, and a browser sends no token for them.
    app = FastAPI(title="flux-endpoint service", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.listeners, app.state.fresh_reports = listeners, fresh_reports
    app.state.live_output = live_output
    _add_routes(app, settings, counters)
    return app


def end_waits(app: FastAPI) -> None:
    """End the requests that wait for news: the service ends."""
    app.state.listeners.close()
    app.state.live_output.close()


def _add_routes(app: FastAPI, settings: ServiceSettings, counters: ServiceCounters) -> None:
    """Add the routes, and the middleware around them: the last one gets a request first."""
    app.add_middleware(NotedRoutes)
    app.add_middleware(Bodies)
    app.add_middleware(Authentication, rate=RequestRate(settings.max_user_requests))
    errors.add_handlers(app)
    app.add_middleware(WatchedSubmissions)
    app.add_middleware(AbsoluteTargets)
    waiting = frozenset(
        {"/page/events", "/page/tasks/{task_id}/output", "/v3/tasks/{task_id}/output"}
    )
    app.add_middleware(CountedRequests, counters=counters, endless=waiting)
    for noun in (version, auth, functions, endpoints, submit, tasks, attach, kill, events, amqp):
        app.include_router(noun.router)
    app.include_router(endpoint_tokens.router)
    app.include_router(operations.router)
    app.include_router(output.router)
    app.include_router(health.router)
    app.include_router(taken.router)
    app.include_router(cache.router)
    app.include_router(metrics.router)
    app.state.report_requests, app.state.output_streams = ReportRequests(), OutputStreams()
    app.include_router(page.router)
    app.include_router(administration.router)


def _key(database: Database) -> bytes:
    with database.read() as connection:
        return account_key(connection)
