"""Ringing of attempts, uncertain redials of calls, one call at a time to a number, paused dialers.

Columns are added in place, on both databases. The two indexes hold only calls that are being
dialled, and one-time passwords that wait, so they stay small however many calls there are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempt", sa.Column("rang_at", sa.Double()))
    op.add_column("call", sa.Column("uncertain", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column(
        "project",
        sa.Column("one_call_per_number", sa.Boolean(), nullable=False, server_default=sa.true()),
    )
    op.add_column(
        "project",
        sa.Column("unwanted_to_do_not_call", sa.Boolean(), nullable=False,
                  server_default=sa.false()),
    )
    op.add_column("dialer", sa.Column("installation", sa.String(32)))
    op.add_column("dialer", sa.Column("up", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("dialer", sa.Column("paused_reason", sa.String(200)))
    op.add_column("dialer", sa.Column("worked_at", sa.Double()))
    op.add_column("call", sa.Column("may_ring_until", sa.Double()))
    may_ring = sa.text("may_ring_until IS NOT NULL")
    op.create_index("ix_call_may_ring", "call", ["project_id", "e164", "may_ring_until"],
                    sqlite_where=may_ring, postgresql_where=may_ring)
    in_flight = sa.text("due_at IS NULL AND status = 0")
    op.create_index("ix_call_in_flight", "call", ["project_id", "e164"],
                    sqlite_where=in_flight, postgresql_where=in_flight)
    waiting_otp = sa.text("due_at IS NOT NULL AND lane = 0")
    op.create_index("ix_call_waiting_otp", "call", ["project_id", "e164", "id"],
                    sqlite_where=waiting_otp, postgresql_where=waiting_otp)
