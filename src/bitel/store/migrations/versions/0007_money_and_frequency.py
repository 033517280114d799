"""Longest duration of calls, allowed hold, notes in the ledger, calls to each number.

Columns are added in place, on both databases. `longest_seconds` of older calls is 0: their dialer
then reckons with the default hold.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "project",
        sa.Column("hold_seconds", sa.Integer(), nullable=False, server_default=sa.text("60")),
    )
    op.add_column("project", sa.Column("max_calls_per_number_per_day", sa.Integer()))
    op.add_column(
        "call",
        sa.Column("longest_seconds", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )
    op.add_column(
        "ledger_entry",
        sa.Column("note", sa.String(200), nullable=False, server_default=sa.text("''")),
    )
    op.create_table(
        "placed_number",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("project_id", sa.String(32), sa.ForeignKey("project.id"), nullable=False),
        sa.Column("e164", sa.String(16), nullable=False),
        sa.Column("placed_at", sa.Double(), nullable=False),
        sa.Column("is_otp", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_placed_number", "placed_number", ["project_id", "e164", "placed_at"])
    op.create_index("ix_placed_number_age", "placed_number", ["placed_at"])
