import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None


def upgrade():
    op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
    )
