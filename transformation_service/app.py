"""The HTTP interface."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transformation_service import __version__, ledger, script_api, script_catalog
from transformation_service.database import create_pool
from transformation_service.engine import Engine
from transformation_service.entities import ENTITIES
from transformation_service.metrics import CONTENT_TYPE, Metrics
from transformation_service.problems import Problem, database_unavailable
from transformation_service.reading import check_key, known, parse_slot, read_id
from transformation_service.rules import RULES, Rule, rule_set_version
from transformation_service.script_runs import Runner
from transformation_service.settings import Settings

log = logging.getLogger(__name__)

MAX_BATCH_SIZE = 10_000
MAX_BODY_BYTES = 64 * 1024
OPEN_PATHS = frozenset({"/health", "/metrics"})


class TransformationRequest(BaseModel):
    """Body of ``POST /api/v1/transformations``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    entity_type: str
    rules: Annotated[list[str], Field(min_length=1)]
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)] = 1000
    slot: str
    max_records: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None


class Gate:
    """Checks token and size before anything reads the body, and counts every answer."""

    def __init__(self, app: ASGIApp, token: str, metrics: Metrics) -> None:
        self._app = app
        self._token = token.encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(scope)
        try:
            await (self._app if refusal is None else refusal.response())(scope, receive, counting)
        finally:
            # The route's template, never the path itself: a path per job would be a series per job.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()

    def _refusal(self, scope: Scope) -> Problem | None:
        if scope["path"] in OPEN_PATHS:
            return None
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not (hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"):
            return Problem(
                401,
                "unauthorized",
                "Send the service's token in the header 'Authorization: Bearer <token>'.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return Problem(413, "body-too-large", f"A body has a Content-Length of at most {MAX_BODY_BYTES} bytes.")
        return None


def check_work(body: TransformationRequest, offered: dict[str, Rule]) -> ledger.Request:
    """Return the request in the ledger's terms.

    Raises:
        Problem: 400 for an unknown entity or rule, naming the known ones; for a rule that does not serve the entity or
            comes twice.
    """
    if body.entity_type not in ENTITIES:
        raise Problem(
            400,
            "unknown-entity-type",
            f"Unknown entity_type {body.entity_type[:80]!r}. Known: {', '.join(ENTITIES)}.",
            known=list(ENTITIES),
        )
    unknown = [name for name in body.rules if name not in offered]
    if unknown:
        raise Problem(
            400,
            "unknown-rule",
            f"Unknown rules: {', '.join(name[:80] for name in unknown[:10])}. Known: {', '.join(offered)}.",
            unknown=unknown,
            known=list(offered),
        )
    fitting = [name for name, rule in offered.items() if body.entity_type in rule.fields]
    misfits = [name for name in body.rules if name not in fitting]
    if misfits:
        raise Problem(
            400,
            "rule-does-not-fit",
            f"These rules don't serve {body.entity_type}: {', '.join(misfits)}. Rules that do: {', '.join(fitting)}.",
            misfits=misfits,
            fitting=fitting,
        )
    if len(set(body.rules)) < len(body.rules):
        raise Problem(400, "repeated-rule", "Each rule may be named once: a rule has no effect on its own result.")
    return ledger.Request(
        entity_type=body.entity_type,
        rules=tuple(body.rules),
        rule_set_version=rule_set_version(body.rules),
        batch_size=body.batch_size,
        slot=parse_slot(body.slot),
        max_records=body.max_records,
    )


def offered_rules(names: Sequence[str]) -> dict[str, Rule]:
    """Return the rules on offer; an empty list of names means all.

    Raises:
        ValueError: A name is unknown.
    """
    unknown = sorted(set(names) - set(RULES))
    if unknown:
        raise ValueError(f"unknown rules {', '.join(unknown)}; known: {', '.join(RULES)}")
    return {name: rule for name, rule in RULES.items() if not names or name in names}


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its lifespan opens the pool and runs the engine."""
    metrics = Metrics()
    pool = create_pool(settings.database_url)
    offered = offered_rules(settings.rules)
    started = time.time()
    most = script_catalog.Limits(seconds=settings.script_max_seconds, rows=settings.script_max_rows, statements=20)
    scripts = script_catalog.load(most)
    runner = None
    if settings.scripts_database_url:
        runner = Runner(settings.database_url, settings.scripts_database_url, settings.poll_seconds, most)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(settings, metrics)
        app.state.engine = engine
        # Not waited for: without its database the service still answers, with 503.
        await pool.open(wait=False)
        engine.start()
        if runner:
            runner.start()
        try:
            yield
        finally:
            if runner:
                await runner.stop()
            await engine.stop()
            await pool.close()

    app = FastAPI(title="TransformationService", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.metrics = metrics
    app.add_middleware(Gate, token=settings.token, metrics=metrics)
    app.include_router(script_api.create_router(pool, scripts, most, runner))

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        faults = [{"where": ".".join(map(str, fault["loc"])), "message": str(fault["msg"])} for fault in error.errors()]
        detail = "; ".join(f"{fault['where']}: {fault['message']}" for fault in faults)
        return Problem(400, "invalid-request", detail, errors=faults).response()

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return Problem(
            error.status_code, "http", str(error.detail), headers=dict(error.headers) if error.headers else None
        ).response()

    @app.exception_handler(psycopg.OperationalError)
    @app.exception_handler(PoolTimeout)
    async def unavailable(_: Request, error: Exception) -> Response:
        metrics.database_up.set(0)
        log.warning("Answered 503: %s", str(error).strip() or type(error).__name__)
        return database_unavailable().response()

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return Problem(500, "internal", "The service broke on this request; its log has the reason.").response()

    @app.post("/api/v1/transformations", status_code=202)
    async def accept(
        body: TransformationRequest, response: Response, idempotency_key: Annotated[str | None, Header()] = None
    ) -> dict[str, Any]:
        key = check_key(idempotency_key)
        work = check_work(body, offered)
        async with pool.connection() as connection:
            try:
                job_id, replayed = await ledger.accept(connection, ENTITIES[work.entity_type], key, work)
            except ledger.KeyReused as error:
                raise Problem(
                    422, "idempotency-key-reused", "This Idempotency-Key belongs to a request with another body."
                ) from error
            except ledger.ScopeDiffers as error:
                (theirs,) = error.args
                raise Problem(
                    409,
                    "other-scope",
                    "These rules have a job for this slot already, over "
                    + ("all records" if theirs is None else f"the first {theirs} records")
                    + ". Ask for the same max_records, or name another slot.",
                    max_records=theirs,
                ) from error
            document = await ledger.document(connection, job_id, replayed=replayed)
        app.state.engine.wake()
        if not replayed:
            metrics.jobs.labels(work.entity_type, "accepted").inc()
        log.info("%s %s for slot %s as job %s", "Replayed" if replayed else "Accepted", key, body.slot, job_id)
        response.headers["Location"] = f"/api/v1/transformations/{job_id}"
        return document or {}

    @app.get("/api/v1/transformations")
    async def listing(
        slot: str | None = None,
        entity_type: str | None = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> dict[str, Any]:
        moment = None if slot is None else parse_slot(slot)
        async with pool.connection() as connection:
            jobs = await ledger.listing(connection, slot=moment, entity_type=entity_type, limit=limit)
        return {"transformations": jobs}

    @app.get("/api/v1/transformations/{job_id}")
    async def show(job_id: str) -> dict[str, Any]:
        async with pool.connection() as connection:
            return known(await ledger.document(connection, read_id(job_id, _unknown)), _unknown)

    @app.delete("/api/v1/transformations/{job_id}")
    async def cancel(job_id: str) -> dict[str, Any]:
        async with pool.connection() as connection:
            await ledger.cancel(connection, read_id(job_id, _unknown))
            return known(await ledger.document(connection, read_id(job_id, _unknown)), _unknown)

    @app.get("/api/v1/rules")
    async def rules() -> dict[str, Any]:
        return {
            "entity_types": list(ENTITIES),
            "rules": [
                {
                    "name": rule.name,
                    "revision": rule.revision,
                    "summary": rule.summary,
                    "entity_types": list(rule.fields),
                    "fields": {entity: list(fields) for entity, fields in rule.fields.items()},
                }
                for rule in offered.values()
            ],
        }

    @app.get("/health")
    async def health() -> JSONResponse:
        async with pool.connection(timeout=2) as connection:
            row = await (await connection.execute("SELECT max(version) AS version FROM schema_migration")).fetchone()
        metrics.database_up.set(1)
        return JSONResponse(
            {
                "status": "healthy",
                "version": __version__,
                "release": settings.release,
                "schema_version": row["version"] if row else None,
                "uptime_seconds": round(time.time() - started, 1),
            }
        )

    @app.get("/metrics")
    async def expose() -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    return app


def _unknown() -> Problem:
    return Problem(404, "unknown-transformation", "There is no transformation with this id.")
