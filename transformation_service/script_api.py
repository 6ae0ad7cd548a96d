"""The HTTP interface for scripts."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from transformation_service import script_catalog, script_runs, script_sql
from transformation_service.database import Pool
from transformation_service.ledger import KeyReused
from transformation_service.problems import Problem
from transformation_service.reading import check_key, known, parse_slot, read_id
from transformation_service.script_catalog import Limits, Script

log = logging.getLogger(__name__)


class ScriptRunRequest(BaseModel):
    """Body of ``POST /api/v1/script-runs``: ``script`` and ``version``, or ``sql`` and perhaps ``limits``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    script: str | None = None
    version: int | None = None
    sql: str | None = None
    limits: dict[str, Any] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    slot: str


def read_request(body: ScriptRunRequest, scripts: dict[str, dict[int, Script]], most: Limits) -> script_runs.Request:
    """Return the request, with everything checked that can be checked before it runs.

    Raises:
        Problem: 400 with the reason.
    """
    slot = parse_slot(body.slot)
    if body.sql is not None and (body.script, body.version) == (None, None):
        limits = Limits.read(body.limits or {}, most)
        parameters = script_catalog.bind_undeclared(body.parameters)
        script_sql.read(body.sql, parameters=script_runs.undeclared_types(parameters), most=limits.statements)
        return script_runs.Request(script=None, source=body.sql, parameters=parameters, slot=slot, limits=limits)
    if body.script is None or body.version is None or body.sql is not None or body.limits is not None:
        raise Problem(400, "invalid-request", "Send either script and version, or sql and, where wanted, limits.")
    if body.script not in scripts:
        known = list(scripts)
        raise Problem(
            400, "unknown-script", f"Unknown script {body.script[:80]!r}. Known: {', '.join(known)}.", known=known
        )
    versions = scripts[body.script]
    if body.version not in versions:
        raise Problem(
            400,
            "unknown-script-version",
            f"Script {body.script} has no version {body.version}. Known: {', '.join(map(str, versions))}.",
            known=list(versions),
        )
    script = versions[body.version]
    return script_runs.Request(
        script=script,
        source=script.source,
        parameters=script_catalog.bind(script, body.parameters),
        slot=slot,
        limits=script.limits,
    )


def create_router(
    pool: Pool, scripts: dict[str, dict[int, Script]], most: Limits, runner: script_runs.Runner | None
) -> APIRouter:
    """Return the routes; without a runner they refuse to accept runs."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/scripts")
    async def listing() -> dict[str, Any]:
        return {
            "scripts": [
                {
                    "name": script.name,
                    "version": script.version,
                    "summary": script.summary,
                    "parameters": script.parameters,
                    "limits": vars(script.limits),
                    "checksum": script.checksum,
                }
                for versions in scripts.values()
                for script in versions.values()
            ]
        }

    @router.post("/script-runs", status_code=202)
    async def accept(
        body: ScriptRunRequest, response: Response, idempotency_key: Annotated[str | None, Header()] = None
    ) -> dict[str, Any]:
        if runner is None:
            raise Problem(
                403,
                "scripts-disabled",
                "This service runs no scripts: TRANSFORMATION_SERVICE_SCRIPTS_DATABASE_URL_FILE is not set.",
            )
        key = check_key(idempotency_key)
        # In a thread: reading a long script takes a while, and other requests should not wait for it.
        request = await asyncio.to_thread(read_request, body, scripts, most)
        async with pool.connection() as connection:
            try:
                run_id, replayed = await script_runs.accept(connection, key, request)
            except KeyReused as error:
                raise Problem(
                    422, "idempotency-key-reused", "This Idempotency-Key belongs to a request with another body."
                ) from error
            document = await script_runs.document(connection, run_id, replayed=replayed)
        runner.wake()
        log.info("%s %s for slot %s as script run %s", "Replayed" if replayed else "Accepted", key, body.slot, run_id)
        response.headers["Location"] = f"/api/v1/script-runs/{run_id}"
        return document or {}

    @router.get("/script-runs/{run_id}")
    async def show(run_id: str) -> dict[str, Any]:
        async with pool.connection() as connection:
            return known(await script_runs.document(connection, read_id(run_id, _unknown)), _unknown)

    @router.delete("/script-runs/{run_id}")
    async def cancel(run_id: str) -> dict[str, Any]:
        async with pool.connection() as connection:
            await script_runs.cancel(connection, read_id(run_id, _unknown))
            return known(await script_runs.document(connection, read_id(run_id, _unknown)), _unknown)

    return router


def _unknown() -> Problem:
    return Problem(404, "unknown-script-run", "There is no script run with this id.")
