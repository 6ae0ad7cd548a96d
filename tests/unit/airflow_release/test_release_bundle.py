from __future__ import annotations

import os
from pathlib import Path

import pytest
from release_host import load

bundles = pytest.importorskip("airflow.dag_processing.bundles.base")
release_bundle = load("files/release_bundle.py")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / "releases" / name / "dags").mkdir(parents=True)
    return tmp_path


def flip(root: Path, name: str) -> None:
    (root / "new").symlink_to(f"releases/{name}")
    os.replace(root / "new", root / "current")


def bundle(root: Path, version: str | None = None) -> release_bundle.ReleaseBundle:
    made = release_bundle.ReleaseBundle(name="releases", root=str(root), version=version, refresh_interval=300)
    made.initialize()
    return made


def test_it_follows_the_link_and_never_names_it(root):
    flip(root, "one")
    live = bundle(root)
    assert (live.path, live.get_current_version()) == (root / "releases/one", bundles.BundleVersion("one"))
    flip(root, "two")
    assert (live.path, live.get_current_version()) == (root / "releases/two", bundles.BundleVersion("two"))


def test_a_pinned_version_stays(root):
    flip(root, "one")
    pinned = bundle(root, "one")
    flip(root, "two")
    assert (pinned.path, pinned.get_current_version().version) == (root / "releases/one", "one")


def test_a_version_that_is_gone_says_so(root):
    with pytest.raises(Exception, match=r"Release three is not on this host \(.*/releases/three\)"):
        bundle(root, "three")


def test_before_the_first_release_it_is_empty_and_its_version_is_not_none(root, caplog):
    live = bundle(root)
    assert live.is_initialized
    assert live.get_current_version() == bundles.BundleVersion("none")
    assert not live.path.exists()
    assert caplog.text == ""


def test_the_dag_processor_finds_the_first_release_and_the_next_ones(root, monkeypatch):
    """The part of Airflow's manager that decides whether a bundle's files are looked at again."""
    from airflow.dag_processing.manager import BundleState, DagFileProcessorManager

    manager = DagFileProcessorManager(max_runs=1)
    manager._dag_bundles = [release_bundle.ReleaseBundle(name="releases", root=str(root), refresh_interval=300)]
    state = {"version": None, "last_refreshed": None}
    monkeypatch.setattr(manager, "get_bundle_state", lambda name: BundleState(**state))

    def update(name: str, *, last_refreshed, version) -> None:
        state.update({"last_refreshed": last_refreshed} | ({"version": version} if version is not None else {}))

    monkeypatch.setattr(manager, "update_bundle_state", update)
    for method in ("deactivate_deleted_dags", "clear_orphaned_import_errors", "handle_removed_files"):
        monkeypatch.setattr(manager, method, lambda **_: None)
    known: dict[str, set] = {}

    def look() -> set[str]:
        manager.request_bundle_refresh("releases")  # what a priority parsing request does
        manager._refresh_dag_bundles(known_files=known)
        return {str(file.absolute_path) for file in known.get("releases", ())}

    for name in ("one", "two"):
        text = "from airflow.sdk import DAG\n"
        (root / "releases" / name / "dags" / f"{name}.py").write_text(text)
    assert look() == set()
    flip(root, "one")
    assert look() == {str(root / "releases/one/dags/one.py")}
    assert state["version"] == "one"
    flip(root, "two")
    assert look() == {str(root / "releases/two/dags/two.py")}
    flip(root, "one")
    assert look() == {str(root / "releases/one/dags/one.py")}
