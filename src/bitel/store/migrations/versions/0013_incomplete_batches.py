"""Large batches that are written in pieces.

The version before does not know the table. It can use this schema, too: it dials no call whose
campaign has no row yet.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "incomplete_batch",
        sa.Column("campaign_id", sa.String(32), primary_key=True),
        sa.Column("written_at", sa.Double(), nullable=False),
        sa.Column("is_abandoned", sa.Boolean(), nullable=False),
    )
