"""The database: schema, migrations, queries, group commit. All SQL is in this package.

`database.Database` runs functions of a `Connection` on its threads. The other modules hold such
functions about one subject each, such as `calls`, `claims` or `webhooks`, for SQLite and PostgreSQL
alike. Statements of the hot path are `sql_batch.Statement`, others plain SQLAlchemy Core.
"""
