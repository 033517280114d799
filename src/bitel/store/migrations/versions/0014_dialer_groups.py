"""Groups of dialers, and weights of workers in shared limits.

The version before can use this schema, too: its workers count as free, and of the weight 1.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "worker", sa.Column("is_free", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column(
        "worker_share", sa.Column("weight", sa.Double(), nullable=False, server_default=sa.text("1"))
    )
    op.create_table(
        "group_dialer",
        sa.Column("group_id", sa.String(64), primary_key=True),
        sa.Column("dialer_id", sa.String(64), primary_key=True),
        sa.Column("taken", sa.Double(), nullable=False),
    )
