"""Runs migrations on the connection that `Database.migrate` hands over, in its transaction."""

from alembic import context

from flux_endpoint.service.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
