"""Campaigns that are paused, paced and counted; personal texts; lists; webhooks of every state.

Columns of calls and attempts are added in place, on both databases: there may be millions. The
counts of older campaigns are computed from their calls. Indexes for waiting calls of campaigns are
by campaign, so that those of a paused one need not be read.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATUSES = {
    "waiting": 0, "normal": 1, "no_answer": 2, "user_busy": 3, "canceled": 4, "expired": 10,
    "error": 11, "unknown": 20,
}


def index(
    name: str, table: str, columns: list[str], where: str | None = None, unique: bool = False
) -> None:
    only = None if where is None else sa.text(where)
    op.create_index(name, table, columns, unique=unique,
                    sqlite_where=only, postgresql_where=only)


def upgrade() -> None:
    op.add_column("project", sa.Column("webhook_events", sa.Text()))
    op.create_table(
        "webhook",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project_id", sa.String(32), sa.ForeignKey("project.id"), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("off_reason", sa.String(200)),
    )
    index("ix_webhook_project", "webhook", ["project_id", "id"])
    op.create_table(
        "speech_part",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project_id", sa.String(32), sa.ForeignKey("project.id"), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("duration", sa.Double(), nullable=False),
        sa.Column("used_on", sa.Integer(), nullable=False),
        sa.UniqueConstraint("project_id", "key", name=op.f("uq_speech_part_project_id_key")),
    )
    campaigns()
    calls()
    op.add_column("attempt", sa.Column("caller_id", sa.String(33)))
    op.add_column("attempt", sa.Column("machine", sa.String(8)))
    webhook_events()
    op.create_table(
        "recipient_list",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project_id", sa.String(32), sa.ForeignKey("project.id"), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("recipients", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Text(), nullable=False),
    )
    index("ix_recipient_list_project", "recipient_list", ["project_id", "id"])
    op.create_table(
        "recipient_list_piece",
        sa.Column("list_id", sa.String(32), sa.ForeignKey("recipient_list.id"), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("recipients", sa.LargeBinary(), nullable=False),
    )


def campaigns() -> None:
    zero = sa.text("0")
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column("name", sa.String(100)),
        sa.Column("reference", sa.String(100)),
        sa.Column("start_at", sa.Double()),
        sa.Column("time_to_live", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("end_at", sa.Double()),
        sa.Column("window", sa.String(255)),
        sa.Column("calls_per_second", sa.Double()),
        sa.Column("max_channels", sa.Integer()),
        sa.Column("paused_at", sa.Double()),
        sa.Column("pauses", sa.Text(), nullable=False, server_default=sa.text("'[]'")),
        sa.Column("finished_at", sa.Double()),
        sa.Column("webhook_id", sa.String(32)),
        sa.Column("template", sa.Text()),
        sa.Column("language", sa.String(35)),
        *(sa.Column(name, sa.Integer(), nullable=False, server_default=zero) for name in STATUSES),
        sa.Column("answered", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("humans", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("machines", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("price", sa.BigInteger(), nullable=False, server_default=zero),
    )
    for column in columns:
        op.add_column("campaign", column)
    of_campaign = "FROM call WHERE call.campaign_id = campaign.id"
    counts = ", ".join(
        f"{name} = (SELECT count(*) {of_campaign} AND call.status = {status})"
        for name, status in STATUSES.items()
    )
    op.execute(
        f"""
        UPDATE campaign SET {counts},
            price = (SELECT coalesce(sum(call.price), 0) {of_campaign}),
            time_to_live = coalesce((
                SELECT CAST(call.expires_at - call.requested_at + 0.5 AS INTEGER) {of_campaign}
                ORDER BY call.id LIMIT 1
            ), 0),
            answered = (SELECT count(*) {of_campaign} AND EXISTS (
                SELECT 1 FROM attempt
                WHERE attempt.call_id = call.id AND attempt.answered_at IS NOT NULL
            ))
        """
    )
    op.execute(
        f"""
        UPDATE campaign
        SET finished_at = coalesce((SELECT max(call.finished_at) {of_campaign}), requested_at)
        WHERE waiting = 0
        """
    )
    index("ix_campaign_unfinished", "campaign", ["dialer_id", "project_id", "id"],
          "finished_at IS NULL")
    index("ix_campaign_ending", "campaign", ["dialer_id", "end_at"],
          "finished_at IS NULL AND end_at IS NOT NULL")
    op.create_table(
        "campaign_key",
        sa.Column("campaign_id", sa.String(32), sa.ForeignKey("campaign.id"), primary_key=True),
        sa.Column("key", sa.String(1), primary_key=True),
        sa.Column("calls", sa.Integer(), nullable=False),
    )


def calls() -> None:
    for column in (
        sa.Column("reference", sa.String(100)),
        sa.Column("retry_waits", sa.String(128)),
        sa.Column("time_zone", sa.String(64)),
        sa.Column("variables", sa.Text()),
        sa.Column("parts", sa.Text()),
        sa.Column("caller_id", sa.String(33)),
        sa.Column("webhook_id", sa.String(32)),
    ):
        op.add_column("call", column)
    for name in ("ix_call_due", "ix_call_next", "ix_call_expiring", "ix_call_campaign"):
        op.drop_index(name, "call")
    alone = "due_at IS NOT NULL AND campaign_id IS NULL"
    index("ix_call_due", "call", ["dialer_id", "lane", "project_id", "due_at", "id"], alone)
    index("ix_call_next", "call", ["dialer_id", "due_at"], alone)
    index("ix_call_expiring", "call", ["dialer_id", "expires_at"], alone)
    in_campaign = "due_at IS NOT NULL AND campaign_id IS NOT NULL"
    index("ix_call_due_in_campaign", "call", ["campaign_id", "due_at", "id"], in_campaign)
    index("ix_call_unrendered", "call", ["campaign_id", "due_at", "id"],
          f"{in_campaign} AND parts = ''")
    index("ix_call_campaign", "call", ["campaign_id", "id"], "campaign_id IS NOT NULL")
    index("ix_call_project", "call", ["project_id", "id"])
    index("ix_call_status", "call", ["project_id", "status", "id"])
    index("ix_call_number", "call", ["project_id", "e164", "id"])
    index("ix_call_reference", "call", ["project_id", "reference", "id"], "reference IS NOT NULL")
    index("ix_call_webhook", "call", ["webhook_id"], "webhook_id IS NOT NULL")


def webhook_events() -> None:
    """An event may be of any state of a call, or of a campaign."""
    checks = (
        sa.CheckConstraint("state IN ('pending', 'delivered', 'given up')",
                           name=op.f("ck_webhook_event_state")),
        sa.CheckConstraint("(state = 'pending') = (due_at IS NOT NULL)",
                           name=op.f("ck_webhook_event_only_pending_is_due")),
    )
    sqlite = op.get_bind().dialect.name == "sqlite"
    with op.batch_alter_table(
        "webhook_event",
        recreate="always" if sqlite else "never",
        table_args=checks if sqlite else (),
    ) as event:
        event.add_column(sa.Column("campaign_id", sa.String(32)))
        event.add_column(
            sa.Column("type", sa.String(20), nullable=False, server_default=sa.text("''")))
        event.add_column(sa.Column("webhook_id", sa.String(32)))
        event.add_column(sa.Column("body", sa.Text()))
        event.alter_column("call_id", existing_type=sa.String(32), nullable=True)
        event.drop_constraint("uq_webhook_event_call_id", type_="unique")
    index("uq_webhook_event_end", "webhook_event", ["call_id"], "type = ''", unique=True)
    index("ix_webhook_event_call", "webhook_event", ["call_id"])
    index("ix_webhook_event_campaign", "webhook_event", ["campaign_id"])
