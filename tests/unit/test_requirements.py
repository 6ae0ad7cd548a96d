"""requirements.yml asks for the collections that are used here, in the versions of the locked `ansible` package."""

import importlib.util
import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
REQUIRED = {
    row["name"]: row["version"] for row in yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
}


def bundled(name: str) -> str | None:
    """Return the version of a collection that came with the `ansible` package."""
    found = importlib.util.find_spec("ansible_collections")
    assert found is not None
    assert found.submodule_search_locations is not None
    for folder in found.submodule_search_locations:
        manifest = Path(folder, *name.split("."), "MANIFEST.json")
        if manifest.exists():
            return str(json.loads(manifest.read_text())["collection_info"]["version"])
    return None


def used() -> set[str]:
    """Return the collections that playbooks, roles, inventories and settings name."""
    texts = [ROOT / "ansible.cfg"]
    for folder in ("roles", "playbooks", "inventories", "molecule"):
        texts += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".yml", ".j2", ".py")]
    name = re.compile(r"\b(ansible\.(?:posix|utils|netcommon)|community\.[a-z_]+|containers\.podman)\.[a-z_]+")
    return {found for path in texts for found in name.findall(path.read_text())}


def test_versions_are_the_bundled_ones() -> None:
    assert {name: bundled(name) for name in REQUIRED} == REQUIRED


def test_what_is_used_is_what_is_asked_for() -> None:
    assert used() == set(REQUIRED)
