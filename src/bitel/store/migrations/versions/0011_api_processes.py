"""Keys of tokens, processes that answer the API, and leases of events, so that any number may run.

An earlier version may run beside this one: it leaves the new column alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "signing_key",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("retired_at", sa.Double()),
        sa.Column("wrapping", sa.String(32)),
        sa.Column("material", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "api_process",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("beats", sa.Integer(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
    )
    op.add_column("webhook_event", sa.Column("leased_until", sa.Double()))
