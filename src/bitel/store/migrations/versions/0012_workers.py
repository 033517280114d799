"""Workers of dialers and their shares in limits.

A dialer is run by several workers, each with a lease of its own. The version before has one worker
for each dialer, whose lease is in the table `dialer`. It can use this schema, too.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    compatibility = op.create_table(
        "schema_compatibility", sa.Column("usable_since", sa.String(8), primary_key=True)
    )
    op.bulk_insert(compatibility, [{"usable_since": "0009"}])
    op.create_table(
        "worker",
        sa.Column("dialer_id", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("installation", sa.String(32), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("up", sa.Boolean(), nullable=False),
        sa.Column("paused_reason", sa.String(200)),
        sa.Column("channels", sa.Integer(), nullable=False),
        sa.Column("calls_per_second", sa.Double(), nullable=False),
        sa.Column("late_ms", sa.Double(), nullable=False),
        sa.Column("last_attempt", sa.String(32), nullable=False),
        sa.Column("fenced", sa.Boolean(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "worker_share",
        sa.Column("resource", sa.String(80), primary_key=True),
        sa.Column("dialer_id", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.Integer(), primary_key=True),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.Column("is_able", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "trace_request",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("call_id", sa.String(32), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_table(
        "trace_reply",
        sa.Column(
            "request_id", sa.String(32), sa.ForeignKey("trace_request.id"), primary_key=True
        ),
        sa.Column("worker", sa.String(64), primary_key=True),
        sa.Column("lines", sa.LargeBinary(), nullable=False),
    )
    may_ring = sa.text("may_ring_until IS NOT NULL")
    op.create_index("ix_call_may_ring_number", "call", ["e164", "project_id", "may_ring_until"],
                    sqlite_where=may_ring, postgresql_where=may_ring)
    op.create_index("ix_worker_share_worker", "worker_share", ["dialer_id", "epoch"])
