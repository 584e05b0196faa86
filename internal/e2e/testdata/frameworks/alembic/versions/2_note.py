import sqlalchemy as sa
from alembic import op

revision, down_revision = "2", "1"


def upgrade():
    # Makes a new table, copies the rows, and renames it.
    with op.batch_alter_table("items", recreate="always") as batch:
        batch.add_column(sa.Column("note", sa.String, nullable=False, server_default=""))
