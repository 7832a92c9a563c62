"""Projects, nodes, events, rollups and runs: the first tables.

Revision 0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_s", sa.Float(precision=53), nullable=False),
        sa.Column("updated_s", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("at_s", sa.Float(precision=53), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=120), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_events_project_id_projects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_project_id_id"), ["project_id", "id"], unique=False)

    op.create_table(
        "nodes",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("public_key", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("agent", sa.String(length=80), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("first_seen_s", sa.Float(precision=53), nullable=False),
        sa.Column("last_seen_s", sa.Float(precision=53), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_since_s", sa.Float(precision=53), nullable=False),
        sa.Column("seconds_online", sa.Float(precision=53), nullable=False),
        sa.Column("rows_forward", sa.BigInteger(), nullable=False),
        sa.Column("rows_backward", sa.BigInteger(), nullable=False),
        sa.Column("updates", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("flop", sa.Float(precision=53), nullable=False),
        sa.Column("process_started_s", sa.Float(precision=53), nullable=True),
        sa.Column("process_counted", sa.Text(), nullable=False),
        sa.Column("announcement", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_nodes_project_id_projects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "public_key", name=op.f("pk_nodes")),
    )
    op.create_table(
        "rollups",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("resolution_s", sa.Integer(), nullable=False),
        sa.Column("start_s", sa.BigInteger(), nullable=False),
        sa.Column("rows_forward", sa.BigInteger(), nullable=False),
        sa.Column("rows_backward", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("updates", sa.BigInteger(), nullable=False),
        sa.Column("flop", sa.Float(precision=53), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("serving_sum", sa.Float(precision=53), nullable=False),
        sa.Column("degraded_sum", sa.Float(precision=53), nullable=False),
        sa.Column("stale_sum", sa.Float(precision=53), nullable=False),
        sa.Column("lost_sum", sa.Float(precision=53), nullable=False),
        sa.Column("orphaned_sum", sa.Float(precision=53), nullable=False),
        sa.Column("nodes_online_sum", sa.Float(precision=53), nullable=False),
        sa.Column("latency_samples", sa.Integer(), nullable=False),
        sa.Column("p50_sum", sa.Float(precision=53), nullable=False),
        sa.Column("p95_sum", sa.Float(precision=53), nullable=False),
        sa.Column("online_s", sa.Float(precision=53), nullable=False),
        sa.Column("degraded_s", sa.Float(precision=53), nullable=False),
        sa.Column("stale_s", sa.Float(precision=53), nullable=False),
        sa.Column("paused_s", sa.Float(precision=53), nullable=False),
        sa.Column("offline_s", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_rollups_project_id_projects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "node", "resolution_s", "start_s", name=op.f("pk_rollups")),
    )
    with op.batch_alter_table("rollups", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rollups_resolution_s_start_s"), ["resolution_s", "start_s"], unique=False)

    op.create_table(
        "run_points",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("trainer", sa.String(length=64), nullable=False),
        sa.Column("run", sa.String(length=80), nullable=False),
        sa.Column("metric", sa.String(length=80), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_run_points_project_id_projects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "trainer", "run", "metric", "step", name=op.f("pk_run_points")),
    )
    op.create_table(
        "runs",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("trainer", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("trainer_name", sa.String(length=80), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("started_s", sa.Float(precision=53), nullable=False),
        sa.Column("last_heard_s", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_runs_project_id_projects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "trainer", "name", name=op.f("pk_runs")),
    )


def downgrade() -> None:
    op.drop_table("runs")
    op.drop_table("run_points")
    with op.batch_alter_table("rollups", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rollups_resolution_s_start_s"))

    op.drop_table("rollups")
    op.drop_table("nodes")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_project_id_id"))

    op.drop_table("events")
    op.drop_table("projects")
