"""Command line: ``python -m transformation_service``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from transformation_service import database, loading, script_catalog, script_runs
from transformation_service.entities import ENTITIES, Entity
from transformation_service.settings import ConfigurationError, Settings, read_scripts_url, read_secret

cli = typer.Typer(
    help="The reference TransformationService.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _entity(name: str) -> Entity:
    if name not in ENTITIES:
        raise typer.BadParameter(f"unknown entity {name!r}; known: {', '.join(ENTITIES)}")
    return ENTITIES[name]


EntityOption = Annotated[Entity, typer.Option("--entity", parser=_entity, help=" | ".join(ENTITIES))]


@cli.command()
def serve() -> None:
    """Answer requests and run jobs until SIGTERM."""
    # Imported here, for the other commands run at each start of the service and need no web server.
    import uvicorn

    from transformation_service.app import create_app

    settings = Settings.from_environment()
    logging.basicConfig(level=settings.log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # The event loop gets the interpreter from the rules' thread after one millisecond, not five: /health stays quick.
    sys.setswitchinterval(0.001)
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
def migrate(
    sample: Annotated[
        list[str] | None, typer.Option(help="ENTITY=COUNT: fill this entity's table with samples if it is empty.")
    ] = None,
) -> None:
    """Bring the database's schema up to this release; says whether anything changed."""
    url = read_secret("DATABASE_URL_FILE")
    applied = database.migrate(url)
    script_runs.prepare(url, read_scripts_url(), script_catalog.load())
    loaded = {}
    for text in sample or []:
        name, _, count = text.partition("=")
        if not count.isdigit():
            raise typer.BadParameter(f"{text!r} is not of the form ENTITY=COUNT")
        loaded[name] = _load_samples(url, _entity(name), int(count), seed=7, only_if_empty=True)
    typer.echo(json.dumps({"changed": bool(applied or any(loaded.values())), "applied": applied, "loaded": loaded}))


@cli.command()
def load(entity: EntityOption, file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Insert the records of a .csv or .ndjson file, all or none."""
    count = loading.load(read_secret("DATABASE_URL_FILE"), entity, loading.read(file, entity))
    typer.echo(json.dumps({"changed": count > 0, "loaded": {entity.name: count}}))


@cli.command()
def generate(
    entity: EntityOption,
    count: Annotated[int, typer.Option(min=1, max=10_000_000)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same records.")] = 7,
    load: Annotated[bool, typer.Option("--load", help="Insert the records instead of printing them.")] = False,
    if_empty: Annotated[bool, typer.Option("--if-empty", help="With --load: only into an empty table.")] = False,
) -> None:
    """Make realistic, messy records: NDJSON on standard output, or straight into the database."""
    from transformation_service import samples

    if not load:
        for record in samples.generate(entity.name, count, seed):
            typer.echo(json.dumps(record, ensure_ascii=False))
        return
    loaded = _load_samples(read_secret("DATABASE_URL_FILE"), entity, count, seed=seed, only_if_empty=if_empty)
    typer.echo(json.dumps({"changed": loaded > 0, "loaded": {entity.name: loaded}}))


@cli.command()
def load_test(
    count: Annotated[int, typer.Argument(min=0, max=10_000_000, metavar="RECORDS", help="0 only removes.")],
) -> None:
    """Remove what load tests have left (jobs of slots in the year 2000, their records); add users until RECORDS."""
    from transformation_service import load_test

    did = load_test.prepare(read_secret("DATABASE_URL_FILE"), count)
    typer.echo(json.dumps({"changed": any(did.values()), **did}))


def _load_samples(url: str, entity: Entity, count: int, *, seed: int, only_if_empty: bool) -> int:
    from transformation_service import samples

    return loading.load(url, entity, samples.generate(entity.name, count, seed), only_if_empty=only_if_empty)


def main() -> None:
    """Run the command line; what an operator can mend ends in one sentence on standard error."""
    try:
        cli()
    except (ConfigurationError, database.MigrationError, loading.LoadError, script_catalog.ScriptError) as error:
        sys.exit(f"transformation_service: {error}")
    except psycopg.OperationalError as error:
        sys.exit(f"transformation_service: the database can't be reached: {str(error).strip()}")


if __name__ == "__main__":
    main()
