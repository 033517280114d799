"""What calls do about answering machines.

The version before can use this schema, too: it does nothing about them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("call", sa.Column("machine_detection", sa.String(8)))
    op.add_column("call", sa.Column("machine_recording_id", sa.String(32)))
    has_message = sa.text("machine_recording_id IS NOT NULL")
    op.create_index("ix_call_machine_recording", "call", ["machine_recording_id", "status"],
                    sqlite_where=has_message, postgresql_where=has_message)
