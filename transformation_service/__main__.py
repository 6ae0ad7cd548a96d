"""Command line: ``python -m transformation_service``."""

from __future__ import annotations

import json
import logging
import sys

import typer

from transformation_service.database import MigrationError
from transformation_service.database import migrate as apply_migrations
from transformation_service.settings import ConfigurationError, Settings, read_secret

cli = typer.Typer(
    help="The reference TransformationService.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@cli.command()
def serve() -> None:
    """Answer requests and run jobs until SIGTERM."""
    import uvicorn

    from transformation_service.app import create_app

    settings = Settings.from_environment()
    logging.basicConfig(level=settings.log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.access").addFilter(_wanted_in_log)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def _wanted_in_log(record: logging.LogRecord) -> bool:
    """Leave out the probes and scrapes that come every few seconds and succeed."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not (len(arguments) == 5 and arguments[2] in {"/health", "/metrics"} and arguments[4] == 200)


@cli.command()
def migrate() -> None:
    """Bring the database's schema up to this release; says whether anything changed."""
    applied = apply_migrations(read_secret("DATABASE_URL_FILE"))
    typer.echo(json.dumps({"changed": bool(applied), "applied": applied}))


if __name__ == "__main__":
    import psycopg

    try:
        cli()
    except (ConfigurationError, MigrationError) as error:
        sys.exit(f"transformation_service: {error}")
    except psycopg.OperationalError as error:
        sys.exit(f"transformation_service: the database can't be reached: {str(error).strip()}")
