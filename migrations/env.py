"""How Alembic reaches the database: by the connection that backend.database hands it, or by `sqlalchemy.url`."""

from alembic import context
from sqlalchemy import Connection, create_engine

from backend.models.all_models import Base

config = context.config


def run(connection: Connection) -> None:
    # SQLite changes a table by copying it, which Alembic calls batch mode.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    connection = config.attributes.get("connection")
    if connection is not None:
        run(connection)
        return
    url = config.get_main_option("sqlalchemy.url")
    if not url:
        raise SystemExit("migrations run when the coordinator starts; by hand they need sqlalchemy.url")
    engine = create_engine(url)
    with engine.begin() as opened:
        run(opened)
    engine.dispose()


main()
