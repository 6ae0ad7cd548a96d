"""Airflow DAG bundle over immutable release directories: ``<root>/releases/<id>`` and the link ``<root>/current``.

Lives in ``$AIRFLOW_HOME/config``, which is on the import path of every Airflow process and outside every release.
Named in ``[dag_processor] dag_bundle_config_list`` as ``{"name": "releases", "classpath":
"release_bundle.ReleaseBundle", "kwargs": {"root": "/opt/airflow"}}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.base import BaseDagBundle, BundleVersion
from airflow.sdk.exceptions import AirflowException

NO_RELEASE = "none"
"""The version while there is no release.

Not None: dag_processing/manager.py of 3.3.2 takes None for "not read yet", reads the version again when the first
release appears, finds it unchanged, and would not look at its files until the process restarts.
"""


class ReleaseBundle(BaseDagBundle):
    """The live release for the DAG processor, a pinned one for a task: a DAG run keeps the release that it started
    with.

    :param root: directory that holds ``releases/`` and ``current``
    """

    supports_versioning = True

    def __init__(self, *, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.releases = Path(root, "releases")
        self.link = Path(root, "current")

    @property
    def path(self) -> Path:
        """The release's directory, never the link: what reads it must not change release halfway.

        Read from the link at every call. The DAG processor takes the path of a requested file before it refreshes the
        bundle; a path kept since the last refresh would parse the old file and file it under the new version.
        """
        return self.releases / (self.version or self._live())

    def _live(self) -> str:
        try:
            return self.link.readlink().name
        except FileNotFoundError:
            return NO_RELEASE

    def get_current_version(self) -> BundleVersion:
        """Return the pinned release, else the live one."""
        return BundleVersion(version=self.version or self._live())

    def initialize(self) -> None:
        """Check that a pinned release is on this host.

        :raises AirflowException: it is not; Airflow tries the task again, ``[workers] missing_dag_retries`` times
        """
        if self.version and not self.path.is_dir():
            raise AirflowException(
                f"Release {self.version} is not on this host ({self.path}): it was pruned, or this host joined later."
                " Clear the run's tasks with 'Run with latest bundle version', or deploy that release here."
            )
        if not self.version and self._live() == NO_RELEASE:
            self.is_initialized = True  # the base class would warn of a missing path, which is what is expected here
            return
        super().initialize()

    def refresh(self) -> None:
        """Do nothing: whoever moves the link has the release on disk before."""
