"""An open attempt is one that has no end yet: whoever answers does not change the indexes of it.

An index is written anew whenever a column that its condition names is written, and the claim is
written with each answer.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_attempt_open", "attempt")
    op.drop_index("uq_attempt_open_call", "attempt")
    is_open = sa.text("ended_at IS NULL")
    op.create_index("uq_attempt_open_call", "attempt", ["call_id"], unique=True,
                    sqlite_where=is_open, postgresql_where=is_open)
    op.create_index("ix_attempt_open", "attempt", ["dialer_id"],
                    sqlite_where=is_open, postgresql_where=is_open)
