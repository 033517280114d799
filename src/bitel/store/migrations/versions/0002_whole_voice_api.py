"""What the whole voice API needs: campaigns, reservations, turns, webhooks, keys, do-not-call.

A migration is never edited once released, so types are spelt out here and not taken from `schema`.
"""

from contextlib import AbstractContextManager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def changed(
    table: str, *checks: sa.CheckConstraint
) -> AbstractContextManager[BatchOperations]:
    """SQLite changes a table by making it anew, and then must be told of its checks."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    return op.batch_alter_table(
        table, recreate="always" if sqlite else "never", table_args=checks if sqlite else ()
    )


def partial_index(
    name: str, table: str, columns: list[str], where: str, unique: bool = False
) -> None:
    only = sa.text(where)
    op.create_index(name, table, columns, unique=unique,
                    sqlite_where=only, postgresql_where=only)


def upgrade() -> None:
    with changed("project") as project:
        project.add_column(sa.Column("webhook_url", sa.Text()))
        project.add_column(sa.Column("webhook_secret", sa.String(255)))
        project.add_column(sa.Column("webhook_off_reason", sa.String(200)))
        project.add_column(
            sa.Column("reserved", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        project.add_column(sa.Column("daily_spend", sa.BigInteger()))
        project.add_column(
            sa.Column("spent_today", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        project.add_column(
            sa.Column("spent_on", sa.Integer(), nullable=False, server_default=sa.text("0")))
        project.add_column(sa.Column("requests_per_minute", sa.Integer()))
        project.add_column(sa.Column("calls_per_minute", sa.Integer()))
        project.add_column(sa.Column("allowed_prefixes", sa.Text()))
        project.add_column(
            sa.Column("forbidden_prefixes", sa.Text(), nullable=False, server_default=sa.text("''")))
        project.add_column(sa.Column("window", sa.String(255)))
        project.add_column(sa.Column("dialers", sa.Text()))
    partial_index("ix_project_window", "project", ["id"], '"window" IS NOT NULL')

    kind = sa.CheckConstraint("kind IN ('upload', 'speech')", name=op.f("ck_recording_kind"))
    with changed("recording", kind) as recording:
        recording.add_column(
            sa.Column("kind", sa.String(8), nullable=False, server_default=sa.text("'upload'")))
        recording.add_column(sa.Column("speech_key", sa.String(64)))
    partial_index("uq_recording_speech_key", "recording", ["project_id", "speech_key"],
                  "speech_key IS NOT NULL", unique=True)

    for name in ("ix_call_due", "ix_call_campaign", "ix_call_project"):
        op.drop_index(name, "call")
    final_is_not_due = sa.CheckConstraint(
        "due_at IS NULL OR status = 0", name=op.f("ck_call_final_is_not_due"))
    plays_something = sa.CheckConstraint(
        "recording_id IS NOT NULL OR digits IS NOT NULL", name=op.f("ck_call_plays_something"))
    with changed("call", final_is_not_due, plays_something) as call:
        call.alter_column("recording_id", existing_type=sa.String(32), nullable=True)
        call.add_column(
            sa.Column("reserved", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        call.add_column(
            sa.Column("finished_at", sa.Double(), nullable=False, server_default=sa.text("0")))
        call.add_column(sa.Column("digits", sa.String(16)))
        call.add_column(sa.Column("repeat_count", sa.SmallInteger()))
        call.add_column(sa.Column("language", sa.String(35)))
    if op.get_bind().dialect.name != "sqlite":
        op.create_check_constraint(
            op.f("ck_recording_kind"), "recording", "kind IN ('upload', 'speech')")
        op.create_check_constraint(
            op.f("ck_call_plays_something"), "call",
            "recording_id IS NOT NULL OR digits IS NOT NULL")
    partial_index("ix_call_due", "call", ["dialer_id", "lane", "project_id", "due_at", "id"],
                  "due_at IS NOT NULL")
    partial_index("ix_call_next", "call", ["dialer_id", "due_at"], "due_at IS NOT NULL")
    partial_index("ix_call_campaign", "call",
                  ["campaign_id", "id", "status", "finished_at", "price"],
                  "campaign_id IS NOT NULL")
    partial_index("ix_call_needing_recording", "call", ["recording_id"], "status = 0")

    op.create_table(
        "campaign",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("dialer_id", sa.String(64), nullable=False),
        sa.Column("recording_id", sa.String(32)),
        sa.Column("requested_at", sa.Double(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("canceled_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_campaign"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_campaign_project_id"),
        sa.ForeignKeyConstraint(
            ["recording_id"], ["recording.id"], name="fk_campaign_recording_id"),
    )
    op.create_index("ix_campaign_project", "campaign", ["project_id", "id"])

    op.create_table(
        "cancel_request",
        sa.Column("attempt_id", sa.String(32), nullable=False),
        sa.Column("dialer_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_cancel_request"),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempt.id"], name="fk_cancel_request_attempt_id"),
    )
    op.create_index("ix_cancel_request_dialer", "cancel_request", ["dialer_id"])

    op.create_table(
        "do_not_call",
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("e164", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "e164", name="pk_do_not_call"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_do_not_call_project_id"),
    )

    op.create_table(
        "idempotency_key",
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("answer", sa.LargeBinary()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "key", name="pk_idempotency_key"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.id"], name="fk_idempotency_key_project_id"),
    )
    op.create_index("ix_idempotency_key_created", "idempotency_key", ["created_at"])

    op.create_table(
        "webhook_event",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("call_id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double()),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(9), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_event"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_webhook_event_project_id"),
        sa.ForeignKeyConstraint(["call_id"], ["call.id"], name="fk_webhook_event_call_id"),
        sa.UniqueConstraint("call_id", name="uq_webhook_event_call_id"),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'given up')", name=op.f("ck_webhook_event_state")),
        sa.CheckConstraint(
            "(state = 'pending') = (due_at IS NOT NULL)",
            name=op.f("ck_webhook_event_only_pending_is_due")),
    )
    op.create_index("ix_webhook_event_project", "webhook_event", ["project_id", "id"])
    partial_index("ix_webhook_event_due", "webhook_event", ["project_id", "due_at", "id"],
                  "due_at IS NOT NULL")

    op.create_table(
        "webhook_try",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("event_id", sa.String(32), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("status_code", sa.SmallInteger()),
        sa.Column("error", sa.String(200), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_try"),
        sa.ForeignKeyConstraint(
            ["event_id"], ["webhook_event.id"], name="fk_webhook_try_event_id"),
    )
    op.create_index("ix_webhook_try_event", "webhook_try", ["event_id", "id"])
