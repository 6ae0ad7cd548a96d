#!/usr/bin/python
"""The running PostgreSQL server against its files: reload what is newer, name what needs a restart, judge health."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_server
short_description: Reload a PostgreSQL server when its files are newer, and read its health
description:
  - Asks the running server, never the files. It waits up to O(timeout) seconds for the server to answer.
  - With O(reload_after) the server reloads when one of these files is newer than the configuration that it runs with,
    and the module waits until it did.
options:
  socket_directory: {description: Folder of the server's Unix socket., type: path, default: /run/postgresql}
  port: {description: The server's port., type: int, default: 5432}
  login_user: {description: Role and system user of the session., type: str, default: postgres}
  reload_after: {description: Files that the server reads when it reloads., type: list, elements: path, default: []}
  changed_paths:
    description: Paths that earlier tasks changed. Check mode needs them to foresee the reload.
    type: list
    elements: path
    default: []
  addresses:
    description: Addresses on which the server must offer TLS to clients of other hosts.
    type: list
    elements: str
    default: []
  timeout: {description: Seconds to wait for the server., type: int, default: 30}
"""

RETURN = r"""
problems:
  description: One sentence for each thing that is wrong; empty on a healthy server.
  type: list
  returned: always
pending_restart:
  description: Settings whose new value waits for a restart.
  type: list
  returned: always
version:
  description: Version of the running server.
  type: str
  returned: always
"""

import os
import socket
import struct
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgresql_session import OPTIONS, NoServerError, session

# PostgreSQL documentation, "Message Formats", SSLRequest: length 8, code 80877103; the answer is one byte, S or N.
SSL_REQUEST = struct.pack("!ii", 8, 80877103)

HEALTH = {
    "version": "SELECT current_setting('server_version')",
    "checksums": "SELECT current_setting('data_checksums')",
    "recovery": "SELECT pg_is_in_recovery()",
    "pending_restart": "SELECT coalesce(array_agg(name::text ORDER BY name), '{}') FROM pg_settings"
    " WHERE pending_restart",
    # A setting that only waits for a restart is listed here with an error too; it is reported as pending above.
    "file_errors": "SELECT coalesce(array_agg(format('%s line %s: %s', sourcefile, sourceline, error)), '{}')"
    " FROM pg_file_settings f WHERE error IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM pg_settings s WHERE s.name = f.name AND s.pending_restart)",
    "hba_errors": "SELECT coalesce(array_agg(format('pg_hba line %s: %s', line_number, error)), '{}')"
    " FROM pg_hba_file_rules WHERE error IS NOT NULL",
}


def judge(found: dict[str, Any]) -> list[str]:
    """Turn the answers to HEALTH into sentences about what is wrong."""
    problems = []
    if found["checksums"] != "on":
        problems.append("the cluster has no data checksums: stop it, run pg_checksums --enable, start it again")
    if found["recovery"]:
        problems.append("the server is in recovery and takes no writes")
    problems += [f"setting not applied: {error}" for error in found["file_errors"]]
    problems += [f"rule not applied: {error}" for error in found["hba_errors"]]
    if found["pending_restart"]:
        problems.append(f"settings wait for a restart: {', '.join(found['pending_restart'])}")
    return problems


def tls_problem(address: str, port: int) -> str | None:
    """Ask the server at `address` for TLS as a client does; return what is wrong, or None."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.sendall(SSL_REQUEST)
            answer = connection.recv(1)
    except OSError as error:
        return f"no answer at {address} port {port}: {error}"
    return None if answer == b"S" else f"the server at {address} port {port} offers no TLS"


def newest(paths: list[str]) -> float:
    """Return the newest modification time of those paths that exist, in seconds since the epoch."""
    return max((os.stat(path).st_mtime for path in paths if os.path.exists(path)), default=0.0)


def _ask(params: dict[str, Any], query: str) -> Any:
    with session(params) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def _wait_for_answer(params: dict[str, Any], query: str, deadline: float) -> Any:
    """Retry while the server starts or recovers; a new connection each time, as the postmaster forks from its state."""
    while True:
        try:
            return _ask(params, query)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _reload(module: AnsibleModule, load_time: float) -> None:
    deadline = time.monotonic() + module.params["timeout"]
    _ask(module.params, "SELECT pg_reload_conf()")
    # Only a new connection shows the postmaster's time of loading.
    while _ask(module.params, "SELECT extract(epoch FROM pg_conf_load_time())::float8") <= load_time:
        if time.monotonic() > deadline:
            module.fail_json(
                msg="PostgreSQL did not reload its configuration; its log in /var/log/postgresql tells why"
            )
        time.sleep(0.1)


def main() -> None:
    """Wait for the server, reload when needed, report."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "reload_after": {"type": "list", "elements": "path", "default": []},
            "changed_paths": {"type": "list", "elements": "path", "default": []},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    reload_after = params["reload_after"]
    # Only check mode has to foresee; otherwise the files' own times tell, also when a restart has read them already.
    foreseen = module.check_mode and not set(reload_after).isdisjoint(params["changed_paths"])
    deadline = time.monotonic() + (0 if module.check_mode else params["timeout"])
    try:
        load_time = _wait_for_answer(params, "SELECT extract(epoch FROM pg_conf_load_time())::float8", deadline)
    except NoServerError as error:
        if module.check_mode:
            # A pristine host: the start that comes first reads the new files, nothing is left to reload.
            module.exit_json(changed=False, problems=[], pending_restart=[], version="")
        module.fail_json(msg=f"{error} (waited {params['timeout']} s)")
        return
    except Exception as error:  # psycopg2 is not importable everywhere, so its own class can't be named here
        module.fail_json(msg=f"PostgreSQL refused the local session: {error}")
        return

    changed = newest(reload_after) > load_time or foreseen
    if changed and not module.check_mode:
        _reload(module, load_time)

    with session(params) as connection, connection.cursor() as cursor:
        found = {}
        for name, query in HEALTH.items():
            cursor.execute(query)
            found[name] = cursor.fetchone()[0]
    problems = judge(found)
    if not module.check_mode:
        problems += [problem for address in params["addresses"] if (problem := tls_problem(address, params["port"]))]
    module.exit_json(
        changed=changed,
        problems=problems,
        pending_restart=found["pending_restart"],
        version=found["version"],
        diff={"before": "", "after": "reload the configuration\n" if changed else ""},
    )


if __name__ == "__main__":
    main()
