"""What a module needs to work inside Airflow's own venv: its configuration and its secrets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HOME = "/opt/airflow"
CONFIGURATION = "/etc/airflow/airflow.cfg"
CREDENTIALS = "/etc/airflow/credentials"
# The options that carry a secret, by the name of the credential's file; systemd hands the same files to the services.
OPTIONS = {
    "sql_alchemy_conn": "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "sql_alchemy_conn_async": "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC",
    "fernet_key": "AIRFLOW__CORE__FERNET_KEY",
    "jwt_secret": "AIRFLOW__API_AUTH__JWT_SECRET",
    "api_secret_key": "AIRFLOW__API__SECRET_KEY",
    "broker_url": "AIRFLOW__CELERY__BROKER_URL",
    "result_backend": "AIRFLOW__CELERY__RESULT_BACKEND",
}


def credential(name: str, directory: str = CREDENTIALS) -> str:
    """Return a secret of this host. Raises FileNotFoundError where the host does not hold it."""
    return Path(directory, name).read_text().rstrip("\n")


def environment(credentials: str = CREDENTIALS) -> dict[str, str]:
    """Return the environment variables of an Airflow process of this host, secrets included.

    Raises FileNotFoundError before Airflow is configured.
    """
    if not Path(CONFIGURATION).exists():
        raise FileNotFoundError(f"{CONFIGURATION}: Airflow is not installed on this host")
    secrets = {
        option: credential(name, credentials) for name, option in OPTIONS.items() if Path(credentials, name).exists()
    }
    return {
        "AIRFLOW_HOME": HOME,
        "AIRFLOW_CONFIG": CONFIGURATION,
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "/var/log/airflow",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "PATH": f"{HOME}/venv/bin:/usr/bin:/bin",
        "HOME": "/var/lib/airflow",
        "LANG": "C.UTF-8",
        **secrets,
    }


def enter_airflow(credentials: str = CREDENTIALS) -> None:
    """Import Airflow in this process, as the services see it but as root.

    Root, because a module's own code lies in an archive that no other user can read; so it must run no DAG author's
    code, and it logs where the services do not. Start-up messages go to stderr: a module's stdout is its JSON answer.
    Raises FileNotFoundError before Airflow is installed.
    """
    os.environ |= environment(credentials) | {
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "/run/airflow-ansible",
        "HOME": "/root",
    }
    os.chdir("/")
    with quiet_stdout():
        import airflow.settings  # noqa: F401


class quiet_stdout:
    """Send file descriptor 1 to 2 for the body of a ``with`` statement."""

    def __enter__(self) -> None:
        """Keep the real stdout aside."""
        sys.stdout.flush()
        self._kept = os.dup(1)
        os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        """Give the real stdout back."""
        sys.stdout.flush()
        os.dup2(self._kept, 1)
        os.close(self._kept)
