"""What was heard during an attempt: packets both ways, keyed digits, the callee's reports.

Columns are added in place, on both databases: there may be millions of attempts.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempt", sa.Column("packets_sent", sa.Integer()))
    op.add_column("attempt", sa.Column("packets_received", sa.Integer()))
    op.add_column("attempt", sa.Column("digits", sa.String(256)))
    op.add_column("attempt", sa.Column("far_loss", sa.Double()))
    op.add_column("attempt", sa.Column("far_jitter_ms", sa.Double()))
