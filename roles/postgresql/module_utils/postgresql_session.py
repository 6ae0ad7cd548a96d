"""A superuser session on this host's PostgreSQL over its Unix socket, shared by the modules of role postgresql."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OPTIONS = {
    "socket_directory": {"type": "path", "default": "/run/postgresql"},
    "port": {"type": "int", "default": 5432},
    "login_user": {"type": "str", "default": "postgres"},
}


class NoServerError(Exception):
    """There is no server to talk to: no socket, or the client library is not installed yet."""


@contextmanager
def session(params: dict[str, Any], database: str = "postgres") -> Iterator[Any]:
    """Yield an autocommit psycopg2 connection as `login_user`, authenticated by the kernel (peer).

    Modules run as root. The server compares the *effective* user of the connecting process, so that one is switched
    for the connect only. `become_user` would do as well, but not on a pristine host in check mode: no user there.
    Raises NoServerError, or psycopg2.Error when the server refuses.
    """
    socket = f"{params['socket_directory']}/.s.PGSQL.{params['port']}"
    if not os.path.exists(socket):
        raise NoServerError(f"no PostgreSQL listens on {socket}")
    try:
        import psycopg2
    except ImportError as error:
        raise NoServerError(f"python3-psycopg2 is not installed: {error}") from error

    own = os.geteuid()
    if own == 0:
        os.seteuid(pwd.getpwnam(params["login_user"]).pw_uid)
    try:
        connection = psycopg2.connect(
            host=params["socket_directory"],
            port=params["port"],
            user=params["login_user"],
            dbname=database,
            connect_timeout=10,
            application_name="ansible",
        )
    finally:
        if own == 0:
            os.seteuid(own)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            # Statements of this session hold password verifiers: they stay out of the server's log.
            cursor.execute(
                "SET log_statement = 'none'; SET log_min_duration_statement = -1;"
                " SET log_min_error_statement = 'panic';"
                " SET statement_timeout = '60s'; SET lock_timeout = '20s'; SET search_path = pg_catalog"
            )
        yield connection
    finally:
        connection.close()
