from __future__ import annotations

import os
import tempfile

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))  # before anything imports airflow

from tests.unit.conftest import postgresql_server  # noqa: F401
