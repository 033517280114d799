"""The only place with SQL: schema, migrations, queries, group commit.

`Database` runs plain functions of a `Connection` on threads. Each other module holds such functions
about one thing, such as `calls`, `claims` or `webhooks`. SQLite and PostgreSQL behave alike.
"""
