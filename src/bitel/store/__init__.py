"""The only place with SQL: schema, migrations, queries, group commit.

`Database` runs plain functions of a `Connection` on threads; `projects`, `tokens`, `recordings`,
`calls`, `leases`, `claims` and `settling` hold those functions. SQLite and PostgreSQL behave alike.
"""
