"""Rule enrich_metadata."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from typing import Any, ClassVar

from transformation_service.entities import Entity, Record
from transformation_service.rules.base import Rule, Unprocessable

ENVIRONMENTS = {
    "production": {"prod", "prd", "live"},
    "staging": {"stg", "stage", "staging", "preprod", "uat"},
    "test": {"test", "tst", "qa"},
    "development": {"dev", "sandbox", "lab"},
}
# IANA service names of the ports that discovery finds most.
SERVICES = {
    22: "ssh", 25: "smtp", 53: "domain", 80: "http", 389: "ldap", 443: "https", 1433: "ms-sql-s", 3306: "mysql",
    5432: "postgresql", 5672: "amqp", 6379: "redis", 8080: "http-alt", 9200: "elasticsearch", 27017: "mongodb",
}  # fmt: skip
EXPECTED = ("hostname", "ip_address", "port", "service", "owner", "tags")


class EnrichMetadata(Rule):
    """Derives what a discovered service's document implies: domain, environment, network, fingerprint, completeness.

    The result in ``metadata`` depends on ``document`` and ``source`` alone.
    """

    name: ClassVar[str] = "enrich_metadata"
    revision: ClassVar[int] = 1
    fields: ClassVar[dict[str, tuple[str, ...]]] = {"DiscoveryMetadata": ("document", "metadata")}

    def apply(self, entity: Entity, record: Record) -> Record:
        """Return ``metadata``."""
        document = record["document"]
        if not isinstance(document, dict) or not document:
            raise Unprocessable("the document is no JSON object with members")
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        metadata: dict[str, Any] = {
            "fingerprint": hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest(),
            "completeness": round(
                sum(document.get(name) not in (None, "", []) for name in EXPECTED) / len(EXPECTED), 2
            ),
            **_host(document.get("hostname")),
            **_address(document.get("ip_address")),
        }
        port = document.get("port")
        if isinstance(port, int) and port in SERVICES:
            metadata["well_known_service"] = SERVICES[port]
        return {"metadata": metadata}


def _host(hostname: object) -> dict[str, Any]:
    if not isinstance(hostname, str) or not hostname.strip():
        return {}
    host, _, domain = hostname.strip().lower().rstrip(".").partition(".")
    words = set(re.split(r"[^a-z]+", f"{host}.{domain}"))
    environment = next((name for name, marks in ENVIRONMENTS.items() if words & marks), "unknown")
    return {"host": host, "domain": domain or None, "environment": environment}


def _address(address: object) -> dict[str, Any]:
    try:
        parsed = ipaddress.ip_address(address.strip()) if isinstance(address, str) else None
    except ValueError:
        parsed = None
    if parsed is None:
        return {}
    prefix = 24 if parsed.version == 4 else 64
    return {
        "ip_version": parsed.version,
        "scope": "loopback" if parsed.is_loopback else "private" if parsed.is_private else "public",
        "network": str(ipaddress.ip_network((parsed, prefix), strict=False)),
    }
