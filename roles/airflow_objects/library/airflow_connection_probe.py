#!/usr/bin/python
"""Use every Airflow connection for real, from the host that the tasks will run on."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import importlib.util
import platform
import queue
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: airflow_connection_probe
short_description: Use every Airflow connection for real from this host
description:
  - C(postgres) logs in and asks who it is. C(http) and C(transformation_service) ask for a path without and, where one
    is given, a path with the credentials. Every other type opens a TCP connection. All connections at once, each with
    the same time limit.
  - Reads nothing from Airflow and imports none of it; takes the same items as M(airflow_objects).
  - Changes nothing. In check mode a failure is a warning, because what the run would change is not yet in place.
options:
  connections:
    description:
      - The wanted connections, as for M(airflow_objects).
      - The key C(probe) of an item says how to try it. For these two, C(path) (default C(/health)) must answer below
        400 without credentials, C(authenticated_path) must answer below 400 with them. C(skip) set to true leaves it
        out.
    type: list
    elements: dict
    required: true
  source:
    description: Name of this host in messages.
    type: str
  timeout:
    description: Seconds that one connection may take.
    type: float
    default: 5
"""

EXAMPLES = r"""
- name: Try every connection from a worker
  airflow_connection_probe:
    connections: "{{ airflow_objects_connections }}"
    source: "{{ inventory_hostname }}"
  vars:
    ansible_python_interpreter: /opt/airflow/venv/bin/python
"""

RETURN = r"""
probes:
  description: One entry per connection.
  type: list
  returned: on success
  sample: [{conn_id: transformation_db, ok: true, seconds: 0.02, detail: "PostgreSQL 17.6, ...", target: "db-1:5432"}]
"""

_DEFAULT_PORTS: Final = {
    "postgres": 5432,
    "redis": 6379,
    "smtp": 25,
    "slack": 443,
    "slackwebhook": 443,
    "ssh": 22,
    "sftp": 22,
}
_HTTP_TYPES: Final = ("http", "transformation_service")
_DEFAULT_HOSTS: Final = {"slack": "slack.com", "slackwebhook": "hooks.slack.com"}
# What the postgres provider hands on to libpq; its other keys (cursor, iam, ...) steer the hook itself.
_LIBPQ_KEYS: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "options", "target_session_attrs")


class ProbeError(Exception):
    """A connection that does not work. `found` says what happened, `check` what to look at; neither holds a secret."""

    def __init__(self, found: str, check: str) -> None:
        super().__init__(found)
        self.found, self.check = found, check


@dataclasses.dataclass
class Probe:
    """The answer for one connection."""

    conn_id: str
    conn_type: str
    target: str
    ok: bool
    seconds: float
    detail: str
    check: str = ""

    def sentence(self, source: str) -> str:
        """Say which connection, from where to where, what was found and what to check."""
        where = f"{self.conn_id} ({self.conn_type}) from {source} to {self.target}"
        return f"{where}: {self.detail}" + (f". Check {self.check}" if self.check else "")


def target_of(item: Mapping[str, Any]) -> tuple[str, int | None]:
    """Return host and port that a connection leads to; host is empty when it leads nowhere.

    A host may be a URL, as the http provider allows; its port, then the scheme's, stand in for a missing one.
    """
    conn_type = item["conn_type"]
    host = str(item.get("host") or _DEFAULT_HOSTS.get(conn_type, ""))
    port = int(item["port"]) if item.get("port") else None
    if "://" in host:
        parts = urllib.parse.urlsplit(host)
        host, port = parts.hostname or "", port or parts.port
    if conn_type in _HTTP_TYPES:
        return host, port or (443 if http_scheme(item) == "https" else 80)
    return host.split("/", 1)[0], port or _DEFAULT_PORTS.get(conn_type)


def http_scheme(item: Mapping[str, Any]) -> str:
    """Return `http` or `https`, by HttpHook's rule: a URL as host wins over the schema."""
    host = str(item.get("host") or "")
    return urllib.parse.urlsplit(host).scheme if "://" in host else str(item.get("schema") or "http")


def probe_postgres(item: Mapping[str, Any], timeout: float) -> str:
    """Log in as the connection does; describe server, database, role and encryption."""
    import psycopg2

    host, port = target_of(item)
    options = {key: value for key, value in (item.get("extra") or {}).items() if key in _LIBPQ_KEYS}
    try:
        connection = psycopg2.connect(
            host=host,
            port=port,
            dbname=item.get("schema") or None,
            user=item.get("login") or None,
            password=item.get("password") or None,
            connect_timeout=max(2, round(timeout)),  # libpq takes 1 for 2
            **options,
        )
    except psycopg2.OperationalError as error:
        raise _postgres_error(str(error), item) from None
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database(), current_user")
            database, role = cursor.fetchone()
        version = connection.server_version
        encrypted = "TLS" if connection.info.ssl_in_use else "no TLS"
    finally:
        connection.close()
    return f"PostgreSQL {version // 10000}.{version % 10000}, database {database} as {role}, {encrypted}"


def _postgres_error(text: str, item: Mapping[str, Any]) -> ProbeError:
    found = " ".join(text.split())
    # libpq lists every address and every attempt; the last reason is the server's own.
    for marker in ("FATAL: ", "error: "):
        if marker in found:
            found = found.rsplit(marker, 1)[1]
            break
    conn_id = item["conn_id"]
    hints = (
        ("password authentication failed", f"login and password of {conn_id} against the role in PostgreSQL"),
        ("no password supplied", f"password of {conn_id}"),
        ("no pg_hba.conf entry", "that pg_hba lets this host, database and role in, and extra.sslmode"),
        ("does not exist", f"schema and login of {conn_id}: they name the database and the role"),
        ("does not support SSL", f"extra.sslmode of {conn_id}, and TLS on the server"),
        ("certificate", f"extra.sslmode and extra.sslrootcert of {conn_id}"),
        ("too many", "max_connections of the server and the role's connection limit"),
    )
    return ProbeError(found, next((hint for key, hint in hints if key in found), "") or _network_hint(found, item))


def _network_hint(found: str, item: Mapping[str, Any]) -> str:
    text = found.lower()
    if "translate host" in text or "resolve" in text or "name or service" in text or "not known" in text:
        return f"host of {item['conn_id']}, and that this host resolves the name"
    if "refused" in text:
        return "that the service runs and listens on this address and port"
    if "timed out" in text or "timeout" in text or "no answer" in text or "unreachable" in text:
        return "the firewall between the two hosts, then the address"
    return f"host and port of {item['conn_id']}"


def probe_http(item: Mapping[str, Any], timeout: float) -> str:
    """Ask for the open path and, where given, for the one that needs the credentials."""
    how = item.get("probe") or {}
    path = how.get("path", "/health")
    _expect(item, path, {}, timeout)
    detail = f"{path} answered"
    protected = how.get("authenticated_path")
    if protected:
        _expect(item, protected, _credentials(item), timeout)
        detail += f", {protected} accepts the credentials"
    return detail


def _credentials(item: Mapping[str, Any]) -> dict[str, str]:
    login, password = item.get("login"), item.get("password")
    if login:
        pair = base64.b64encode(f"{login}:{password or ''}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {"Authorization": f"Bearer {password}"} if password else {}


def _expect(item: Mapping[str, Any], path: str, headers: dict[str, str], timeout: float) -> None:
    host, port = target_of(item)
    base = urllib.parse.urlsplit(str(item.get("host") or "")).path if "://" in str(item.get("host")) else ""
    connection: http.client.HTTPConnection
    if http_scheme(item) == "https":
        verify = (item.get("extra") or {}).get("verify", True)
        context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
        if verify is False:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", base.rstrip("/") + path, headers=headers)
        status = connection.getresponse().status
    except ssl.SSLCertVerificationError as error:
        check = f"extra.verify of {item['conn_id']} (path of the CA), and the certificate's names"
        raise ProbeError(f"certificate not accepted: {error.verify_message}", check) from None
    except http.client.HTTPException as error:
        raise ProbeError(f"no HTTP answer: {type(error).__name__}", f"host and port of {item['conn_id']}") from None
    finally:
        connection.close()
    if status in (401, 403):
        said = "refuses the credentials" if headers else "wants credentials, and none are given"
        raise ProbeError(
            f"GET {path} answered {status}, {said}", f"login and password of {item['conn_id']} against the service's"
        )
    if status >= 400:
        check = "the service's own log" if status >= 500 else f"host of {item['conn_id']} and its probe path"
        raise ProbeError(f"GET {path} answered {status}", check)


def probe_tcp(item: Mapping[str, Any], timeout: float) -> str:
    """Open a TCP connection, all that can be said about a type without a probe of its own."""
    host, port = target_of(item)
    if port is None:
        raise ProbeError("has no port", f"port of {item['conn_id']}; or set probe.skip for it")
    socket.create_connection((host, port), timeout=timeout).close()
    return "TCP port open"


def probe_one(item: Mapping[str, Any], timeout: float) -> Probe:
    """Try one connection; every failure becomes an answer."""
    host, port = target_of(item)
    target = (f"{host}:{port}" if port else host) or "nowhere"
    begin = time.monotonic()
    probe = {"postgres": probe_postgres, **dict.fromkeys(_HTTP_TYPES, probe_http)}.get(item["conn_type"], probe_tcp)
    ok, check = True, ""
    if (item.get("probe") or {}).get("skip"):
        detail = "left out by probe.skip"
    elif not host:
        detail = "names no host, nothing to try"
    else:
        try:
            detail = probe(item, timeout)
        except ProbeError as error:
            ok, detail, check = False, error.found, error.check
        except OSError as error:
            detail = "no answer" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
            ok, check = False, _network_hint(detail, item)
        except Exception as error:  # such as an import or an option that the driver does not know
            ok, detail, check = False, f"{type(error).__name__}", f"the settings of {item['conn_id']}"
    return Probe(item["conn_id"], item["conn_type"], target, ok, round(time.monotonic() - begin, 3), detail, check)


def probe_all(items: Sequence[Mapping[str, Any]], timeout: float) -> list[Probe]:
    """Try all connections at the same time; the answers come in the order of the items.

    A resolver has no time limit of its own, so a connection that outlasts twice its time is given up from outside.
    """
    answers: queue.Queue[tuple[int, Probe]] = queue.Queue()
    for index, item in enumerate(items):
        threading.Thread(
            target=lambda index=index, item=item: answers.put((index, probe_one(item, timeout))), daemon=True
        ).start()
    found: dict[int, Probe] = {}
    deadline = time.monotonic() + 2 * timeout + 1
    while len(found) < len(items):
        try:
            index, probe = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[index] = probe
    for index, item in enumerate(items):
        if index not in found:
            host, port = target_of(item)
            detail = f"no answer within {2 * timeout + 1:g} s"
            check = "name resolution on this host and the firewall between the two hosts"
            found[index] = Probe(item["conn_id"], item["conn_type"], f"{host}:{port}", False, timeout, detail, check)
    return [found[index] for index in range(len(items))]


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "connections": {"type": "list", "elements": "dict", "required": True},
            "source": {"type": "str"},
            "timeout": {"type": "float", "default": 5.0},
        },
        supports_check_mode=True,
        no_log=True,  # keeps the arguments, secrets included, out of the host's journal
    )
    items = module.params["connections"]
    source = module.params["source"] or platform.node()
    hidden: dict[str, Any] = {"invocation": {"module_args": {"timeout": module.params["timeout"]}}}
    module.no_log_values.update(item["password"] for item in items if item.get("password"))
    if importlib.util.find_spec("airflow") is None:
        message = "Airflow is not installed here yet; its connections were not tried"
        if module.check_mode:
            module.exit_json(changed=False, skipped=True, msg=message, **hidden)
        module.fail_json(msg=f"{message}. Run role airflow first.", **hidden)

    probes = probe_all(items, module.params["timeout"])
    result = {"changed": False, "probes": [dataclasses.asdict(probe) for probe in probes]}
    failures = [probe.sentence(source) for probe in probes if not probe.ok]
    if failures:
        listing = "\n".join(f"- {failure}" for failure in failures)
        message = f"{len(failures)} of {len(probes)} Airflow connections do not work:\n{listing}"
        if not module.check_mode:
            module.fail_json(msg=message, **hidden)  # the list alone: whatever else comes along is printed with it
        module.warn(f"{message}\nCheck mode: this may be what the run would repair.")
    module.exit_json(**result, **hidden)


if __name__ == "__main__":
    main()
