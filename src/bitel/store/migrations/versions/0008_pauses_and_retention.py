"""Pauses by the operator, the last claim of each dialer, use and deletion of recordings and projects.

Columns are added in place, on both databases. A dialer's last claim is compared with the mark in
`data_dir`, so that a database from a backup is recognised. `used_on` of older recordings is the
day of the upgrade: it is not known when they were used last.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pause",
        sa.Column("scope", sa.String(8), primary_key=True),
        sa.Column("target", sa.String(64), primary_key=True),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("is_restored", sa.Boolean(), nullable=False),
        sa.CheckConstraint("scope IN ('service', 'dialer', 'project')", name="scope"),
    )
    op.create_table(
        "retention_cursor",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("last_id", sa.String(32), nullable=False),
    )
    op.add_column(
        "dialer",
        sa.Column("last_attempt", sa.String(32), nullable=False, server_default=sa.text("''")),
    )
    op.add_column("project", sa.Column("deleted_at", sa.Double()))
    op.add_column(
        "recording",
        sa.Column("used_on", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )
    today = (
        "CAST(strftime('%s', 'now') AS INTEGER) / 86400"
        if op.get_bind().dialect.name == "sqlite"
        else "CAST(floor(extract(epoch FROM now()) / 86400) AS INTEGER)"
    )
    op.execute(f"UPDATE recording SET used_on = {today}")
