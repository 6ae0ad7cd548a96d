"""Configuration from the environment; secrets only by the path of a file that holds them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "TRANSFORMATION_SERVICE_"


class ConfigurationError(Exception):
    """A setting is missing or not usable; the message names the variable."""


def read_secret(variable: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the content of the file that ``TRANSFORMATION_SERVICE_<variable>`` names, without surrounding whitespace.

    Raises:
        ConfigurationError: The variable is unset, or its file is unreadable or empty.
    """
    name = PREFIX + variable
    path = (environment if environment is not None else os.environ).get(name, "")
    if not path:
        raise ConfigurationError(f"{name} is not set: give it the path of a file that holds the value.")
    try:
        value = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{name} names {path}, which can't be read: {error.strerror}.") from error
    if not value:
        raise ConfigurationError(f"{name} names {path}, which is empty.")
    return value


def read_scripts_url(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the URL of the role that executes scripts, or ``None`` where scripts are not set up.

    Raises:
        ConfigurationError: The variable is set, and its file is unreadable or empty.
    """
    source = environment if environment is not None else os.environ
    variable = "SCRIPTS_DATABASE_URL_FILE"
    return read_secret(variable, source) if source.get(PREFIX + variable) else None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a running service needs.

    Attributes:
        database_url: libpq URL, secret.
        token: Bearer token that clients must send, secret.
        scripts_database_url: libpq URL of the role that executes scripts, secret; without it the service runs none.
        host: Address to listen on.
        port: TCP port to listen on.
        log_level: Level name of the standard library.
        rules: Names of the rules on offer; empty means all.
        concurrency: Jobs that this process runs side by side.
        poll_seconds: How often to look for jobs that another process accepted or left behind.
        script_max_seconds: Longest time that a script run may ask for.
        script_max_rows: Most rows that a script run may ask to read and write.
        simulated_ms_per_record: Extra work per record in milliseconds, for load tests.
        release: Identity of the running code as the deployment names it, told by ``/health``.
    """

    database_url: str = field(repr=False)
    token: str = field(repr=False)
    scripts_database_url: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    port: int = 5000
    log_level: str = "INFO"
    rules: tuple[str, ...] = ()
    concurrency: int = 4
    poll_seconds: float = 5.0
    script_max_seconds: float = 300.0
    script_max_rows: int = 1_000_000
    simulated_ms_per_record: float = 0.0
    release: str = "unreleased"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read every setting.

        Raises:
            ConfigurationError: Something is missing or malformed.
        """
        source = environment if environment is not None else os.environ

        def number(variable: str, default: float, low: float, high: float) -> float:
            raw = source.get(PREFIX + variable, str(default))
            try:
                value = float(raw)
            except ValueError:
                value = float("nan")
            if not low <= value <= high:
                raise ConfigurationError(f"{PREFIX}{variable} is {raw!r}, not a number from {low:g} to {high:g}.")
            return value

        return cls(
            database_url=read_secret("DATABASE_URL_FILE", source),
            token=read_secret("TOKEN_FILE", source),
            scripts_database_url=read_scripts_url(source),
            host=source.get(PREFIX + "HOST", cls.host),
            port=int(number("PORT", cls.port, 0, 65535)),
            log_level=source.get(PREFIX + "LOG_LEVEL", cls.log_level).upper(),
            rules=tuple(source.get(PREFIX + "RULES", "").replace(",", " ").split()),
            concurrency=int(number("CONCURRENCY", cls.concurrency, 1, 32)),
            poll_seconds=number("POLL_SECONDS", cls.poll_seconds, 0.05, 300),
            script_max_seconds=number("SCRIPT_MAX_SECONDS", cls.script_max_seconds, 1, 86_400),
            script_max_rows=int(number("SCRIPT_MAX_ROWS", cls.script_max_rows, 1, 1_000_000_000)),
            simulated_ms_per_record=number("SIMULATED_MS_PER_RECORD", cls.simulated_ms_per_record, 0, 60_000),
            release=source.get(PREFIX + "RELEASE", cls.release),
        )
