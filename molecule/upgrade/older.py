"""Make the revision of this repository from before the upgrade: Airflow 3.2, and what its code has to do without.

``python molecule/upgrade/older.py FOLDER`` copies what git would and replaces the packages that ``older.txt`` names in
the lock. ``older.txt`` is what ``uv pip compile`` gives for 3.2.2 when all else is as locked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = "roles/airflow/files/requirements.txt"
# What 3.2 does not know, and what stands in its place.
BUNDLE = "roles/airflow_release/files/release_bundle.py"
EDITS = {
    BUNDLE: {
        "import BaseDagBundle, BundleVersion\n": "import BaseDagBundle\n",
        "get_current_version(self) -> BundleVersion:": "get_current_version(self) -> str:",
        "return BundleVersion(version=self.version or self._live())": "return self.version or self._live()",
    },
    # Until 3.2.2 the API server signed for the audience of [api] and asked for that of [api_auth].
    "roles/airflow/vars/main.yml": {
        "    expose_config: false\n": "    expose_config: false\n    jwt_audience: airflow-{{ __airflow_version }}\n",
    },
}
LATER_DAGS = ("dags/00_master_orchestration.py",)  # has a retry policy


def packages(lock: str) -> dict[str, str]:
    """Split a lock into its packages: name -> all of its lines."""
    return {found[1]: found[0] for found in re.finditer(r"^([a-z0-9-]+)==.*\n(?: .*\n)*", lock, re.MULTILINE)}


def older_lock(lock: str, older: str) -> str:
    """Replace the packages that ``older`` names; each must be in the lock."""
    present = packages(lock)
    for name, lines in packages(older).items():
        lock = lock.replace(present[name], lines)
    return lock


def edited(name: str, text: str) -> str:
    """Apply the edits of a file. Raises ValueError when the text is not there any more."""
    for before, after in EDITS[name].items():
        if text.count(before) != 1:
            raise ValueError(f"{name}: expected once: {before!r}")
        text = text.replace(before, after)
    return text


def make(folder: Path) -> None:
    """Make the tree anew."""
    shutil.rmtree(folder, ignore_errors=True)
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in names:
        source, target = ROOT / name, folder / name
        if not name or not (source.exists() or source.is_symlink()) or name in LATER_DAGS:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    shutil.copy(Path(__file__).with_name("probe_dag.py"), folder / "dags/upgrade_probe.py")
    (folder / LOCK).write_text(older_lock((ROOT / LOCK).read_text(), Path(__file__).with_name("older.txt").read_text()))
    for name in EDITS:
        (folder / name).write_text(edited(name, (ROOT / name).read_text()))


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
