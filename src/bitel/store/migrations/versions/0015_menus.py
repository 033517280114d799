"""Menus of calls, and the words that their keys report.

The version before does not know the tables. It plays the audio of a call with a menu, and ends it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "menu",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project_id", sa.String(32), sa.ForeignKey("project.id"), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
    )
    op.create_index("ix_menu_project", "menu", ["project_id", "id"])
    op.create_table(
        "menu_recording",
        sa.Column("menu_id", sa.String(32), sa.ForeignKey("menu.id"), primary_key=True),
        sa.Column("recording_id", sa.String(32), sa.ForeignKey("recording.id"), primary_key=True),
    )
    op.create_index("ix_menu_recording", "menu_recording", ["recording_id", "menu_id"])
    op.add_column("call", sa.Column("menu_id", sa.String(32)))
    has_menu = sa.text("menu_id IS NOT NULL")
    op.create_index("ix_call_menu", "call", ["menu_id", "status"],
                    sqlite_where=has_menu, postgresql_where=has_menu)
    op.add_column("attempt", sa.Column("reports", sa.Text()))
    with op.batch_alter_table("campaign_key") as batch:
        batch.alter_column("key", type_=sa.String(32), existing_type=sa.String(1))
