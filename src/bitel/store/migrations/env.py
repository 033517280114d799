"""Run by Alembic, on the connection and in the transaction that `migrate.upgrade` has begun."""

from alembic import context

from bitel.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
