"""Ansible lookup: the service's source as one content-addressed set of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: transformation_service_source
short_description: Read a Python package from the controller
description:
  - Returns one item per folder, with C(id), a hash over every file's name and content, and C(files), the text by
    path relative to the folder's parent. Only Python and SQL files count, so that caches never make a new release.
options:
  _terms:
    description: Folders of packages.
    required: true
"""

SUFFIXES = (".py", ".sql")


def read_source(folder: Path) -> dict[str, Any]:
    """Return `id` (12 hexadecimal digits) and `files` (text by relative path, sorted) of a package's folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    files = {path.relative_to(folder.parent).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    digest = hashlib.sha256()
    for name, text in files.items():
        # Lengths first: no two sets of files give the same stream.
        digest.update(f"{len(name)} {len(text.encode())} {name}{text}".encode())
    return {"id": digest.hexdigest()[:12], "files": files}


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible has no types
    """Entry point for Ansible."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: object) -> list[dict[str, Any]]:
        """Read every folder of `terms`; fails for one without Python files."""
        found = [read_source(Path(str(term)).resolve()) for term in terms]
        for term, source in zip(terms, found, strict=True):
            if not source["files"]:
                raise AnsibleLookupError(f"{term} holds no Python package.")
        return found
