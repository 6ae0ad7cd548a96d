"""Ansible filter: how to try the former passwords of connections, for module refused_secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote


def connection_attempts(connections: Sequence[Mapping[str, Any]], former: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return an attempt for each wanted connection whose password was another.

    Connections that cannot be tried are left out: types other than postgres and transformation_service, and services
    that name no address that needs a token (``probe.authenticated_path``).
    """
    attempts = []
    for wanted in connections:
        name, present, before = wanted["conn_id"], str(wanted.get("password") or ""), former.get(wanted["conn_id"])
        if not before or before == present:
            continue
        attempt = {"name": f"connection {name}"}
        port = wanted.get("port")
        path = (wanted.get("probe") or {}).get("authenticated_path")
        if wanted["conn_type"] == "postgres":
            mode = (wanted.get("extra") or {}).get("sslmode", "prefer")
            place = f"{wanted['host']}:{port or 5432}/{wanted['schema']}?sslmode={mode}"
            former_url, present_url = (
                f"postgresql://{quote(wanted['login'], safe='')}:{quote(password, safe='')}@{place}"
                for password in (before, present)
            )
            attempts.append({**attempt, "kind": "postgresql", "former": former_url, "present": present_url})
        elif wanted["conn_type"] == "transformation_service" and path:
            url = f"{wanted.get('schema') or 'http'}://{wanted['host']}{f':{port}' if port else ''}{path}"
            attempts.append({**attempt, "kind": "bearer", "url": url, "former": before, "present": present})
    return attempts


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"connection_attempts": connection_attempts}
