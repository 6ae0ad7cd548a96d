"""Run SQL in the TransformationService: scripts that it keeps, or statements that come with the task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from plugins.hooks.transformation_service import RUN
from plugins.operators.transformation_service import (
    TransformationServiceLink,
    TransformationServiceOperator,
    Work,
    canonical,
    is_empty,
    number,
)


class _ScriptOperator(TransformationServiceOperator):
    """What both have in common: parameters, and what a run counts.

    :param parameters: values by name. A template within them gives text; for numbers from templates the DAG needs
        ``render_template_as_native_obj=True``
    """

    kind = RUN
    template_fields: Sequence[str] = (*TransformationServiceOperator.template_fields, "parameters")
    template_fields_renderers: ClassVar[dict[str, str]] = {"parameters": "json"}
    operator_extra_links = (TransformationServiceLink(RUN),)

    def __init__(self, *, parameters: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parameters = parameters or {}

    def values(self) -> dict[str, Any]:
        """The parameters as plain JSON.

        :raises ValueError: one has no form in JSON
        """
        plain: dict[str, Any] = json.loads(canonical(self.parameters))
        return plain

    def figures(self, result: Mapping[str, Any]) -> str:
        """Count statements and rows, and each statement's own."""
        counts = result["counts"] or {}
        each = ", ".join(f"{statement['command']} {statement['rows']}" for statement in result["statements"] or ())
        return f"{counts.get('statements', 0)} statements, {counts.get('rows', 0)} rows" + (each and f" ({each})")


class StaticScriptOperator(_ScriptOperator):
    """Run a version of a script that the TransformationService keeps and wait for the result.

    The effects of a run and its success are one transaction, so it is done completely and once, or not at all.

    The XCom ``return_value`` is the run's summary: ``run_id``, ``run_url``, ``state``, ``slot``, ``script``,
    ``version``, ``counts`` (``statements``, ``rows``), ``statements``, ``rows`` (the first 100 of the last SELECT),
    times.

    :param script: name of the script
    :param version: its version; a script never changes within one
    """

    template_fields: Sequence[str] = (*_ScriptOperator.template_fields, "script", "version")

    def __init__(self, *, script: str, version: int | str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.script = script
        self.version = version

    def work(self, slot: str) -> Work:
        """Script, version, parameters and slot make the work."""
        version, values = number("version", self.version), self.values()
        return Work(
            f"script {self.script} version {version}, slot {slot}",
            [self.script, version, values, slot],
            {"script": self.script, "version": version, "parameters": values, "slot": slot},
        )


class DynamicScriptOperator(_ScriptOperator):
    """Run SQL statements that come with the task in the TransformationService and wait for the result.

    The service checks all of it before any runs: which statements, functions and tables it may use. Values belong into
    ``parameters``, which the service binds; a template in ``sql`` writes them into the statement's text.

    The XCom ``return_value`` is that of :class:`StaticScriptOperator`.

    :param sql: one or more statements, or the path of a ``.sql`` file beside the DAG file
    :param limits: ``seconds``, ``rows``, ``statements``, each optional: what the run may take before it is rolled back.
        Not part of the work: with higher limits a run that failed is tried again
    """

    template_fields: Sequence[str] = (*_ScriptOperator.template_fields, "sql", "limits")
    template_fields_renderers: ClassVar[dict[str, str]] = {"parameters": "json", "sql": "sql", "limits": "json"}
    template_ext: Sequence[str] = (".sql",)

    def __init__(self, *, sql: str, limits: Mapping[str, float | str | None] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sql = sql
        self.limits = limits or {}

    def work(self, slot: str) -> Work:
        """Statements, parameters and slot make the work; the limits only say when to give it up."""
        values = self.values()
        body: dict[str, Any] = {"sql": self.sql, "parameters": values, "slot": slot}
        limits = {
            name: number(f"limits: {name}", limit)
            for name, limit in self.limits.items()
            if limit is not None and not is_empty(limit)
        }
        if limits:
            body["limits"] = limits
        return Work(f"statements {self.sql[:60]!r}, slot {slot}", [self.sql, values, slot], body)
