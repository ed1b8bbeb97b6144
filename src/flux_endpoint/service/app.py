"""The ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

from flux_endpoint.service import errors
from flux_endpoint.service.bodies import Bodies
from flux_endpoint.service.broker import Broker
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.identity import Authentication
from flux_endpoint.service.request_target import AbsoluteTargets
from flux_endpoint.service.routes import (
    amqp,
    attach,
    auth,
    endpoints,
    events,
    functions,
    kill,
    operations,
    submit,
    taken,
    tasks,
    version,
)
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.watched import WatchedSubmissions


def create_app(settings: ServiceSettings) -> FastAPI:
    """Return the service as an ASGI application.

    Its start brings the database up to date and begins to connect to the broker; it answers whether
    the broker is there or not.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url)
        broker = Broker(settings, database)
        await to_thread.run_sync(database.migrate)
        broker.start()
        app.state.observer = broker.observer
        app.state.context = ServiceContext(settings, database, broker.publisher, broker.dispatcher)
        try:
            yield
        finally:
            await to_thread.run_sync(broker.close)
            database.close()

    # No pages on the schema: they load scripts from elsewhere, and a browser sends them no token.
    app = FastAPI(title="flux-endpoint service", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Bodies)
    app.add_middleware(Authentication)
    errors.add_handlers(app)
    app.add_middleware(WatchedSubmissions)
    app.add_middleware(AbsoluteTargets)
    for noun in (version, auth, functions, endpoints, submit, tasks, attach, kill, events, amqp):
        app.include_router(noun.router)
    app.include_router(operations.router)
    app.include_router(taken.router)
    return app
