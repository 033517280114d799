"""The first tables: projects, tokens, recordings, calls, attempts, the ledger, dialers.

A migration is never edited once released, so types are spelt out here and not taken from `schema`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "project",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("balance", sa.BigInteger()),
        sa.Column("default_dialer", sa.String(64)),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
        sa.UniqueConstraint("name", name="uq_project_name"),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_token"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_token_project_id"),
    )
    op.create_table(
        "recording",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("duration", sa.Double(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("deleted_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_recording"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_recording_project_id"),
    )
    op.create_index("ix_recording_project", "recording", ["project_id", "id"])

    op.create_table(
        "call",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("campaign_id", sa.String(32)),
        sa.Column("dialer_id", sa.String(64), nullable=False),
        sa.Column("phone_number", sa.String(64), nullable=False),
        sa.Column("e164", sa.String(16), nullable=False),
        sa.Column("recording_id", sa.String(32), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("retry_count", sa.SmallInteger(), nullable=False),
        sa.Column("retries_left", sa.SmallInteger(), nullable=False),
        sa.Column("retry_interval", sa.Integer(), nullable=False),
        sa.Column("requested_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double()),
        sa.Column("trouble", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("executed_at", sa.Double(), nullable=False),
        sa.Column("bill_seconds", sa.Integer(), nullable=False),
        sa.Column("price", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_call"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_call_project_id"),
        sa.ForeignKeyConstraint(["recording_id"], ["recording.id"], name="fk_call_recording_id"),
        sa.CheckConstraint("due_at IS NULL OR status = 0", name=op.f("ck_call_final_is_not_due")),
    )
    due = sa.text("due_at IS NOT NULL")
    op.create_index("ix_call_due", "call", ["dialer_id", "lane", "due_at", "id"],
                    sqlite_where=due, postgresql_where=due)
    op.create_index("ix_call_expiring", "call", ["dialer_id", "expires_at"],
                    sqlite_where=due, postgresql_where=due)
    in_campaign = sa.text("campaign_id IS NOT NULL")
    op.create_index("ix_call_campaign", "call", ["campaign_id", "id"],
                    sqlite_where=in_campaign, postgresql_where=in_campaign)
    op.create_index("ix_call_project", "call", ["project_id", "id"])

    op.create_table(
        "attempt",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("call_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("dialer_id", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("claim", sa.String(8), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("answered_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        sa.Column("outcome", sa.String(32)),
        sa.Column("sip_code", sa.SmallInteger()),
        sa.Column("q850", sa.SmallInteger()),
        sa.Column("ended_by", sa.String(8), nullable=False),
        sa.Column("detail", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attempt"),
        sa.ForeignKeyConstraint(["call_id"], ["call.id"], name="fk_attempt_call_id"),
        sa.UniqueConstraint("call_id", "number", name="uq_attempt_call_id_number"),
        sa.CheckConstraint("claim IN ('held', 'heard', 'settled')", name=op.f("ck_attempt_claim")),
    )
    is_open = sa.text("claim != 'settled'")
    op.create_index("ix_attempt_open", "attempt", ["dialer_id"],
                    sqlite_where=is_open, postgresql_where=is_open)
    op.create_index("uq_attempt_open_call", "attempt", ["call_id"], unique=True,
                    sqlite_where=is_open, postgresql_where=is_open)

    op.create_table(
        "ledger_entry",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("call_id", sa.String(32)),
        sa.Column("attempt_id", sa.String(32)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_entry"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_ledger_entry_project_id"),
        sa.UniqueConstraint("attempt_id", name="uq_ledger_entry_attempt_id"),
    )
    op.create_index("ix_ledger_entry_project", "ledger_entry", ["project_id", "id"])

    op.create_table(
        "dialer",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(64), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dialer"),
    )


def downgrade() -> None:
    for table in ("dialer", "ledger_entry", "attempt", "call", "recording", "token", "project"):
        op.drop_table(table)
