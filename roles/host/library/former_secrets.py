#!/usr/bin/python
"""The secrets that this host still holds and that the inventory has changed: for the memory of one run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: former_secrets
short_description: Return the secrets of a host that are about to change
description:
  - Compares files with the values that are wanted, and returns the old content of those that differ. Its task needs
    C(no_log), as its result is secret; nothing is written anywhere. Changes nothing.
options:
  files:
    description: "The files; other keys of M(managed_files) are ignored."
    type: list
    elements: dict
    required: true
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: Remember the former secrets
  former_secrets:
    files:
      - {path: /etc/airflow/credentials/jwt_secret, secret: "{{ airflow_jwt_secret }}"}
  register: former
  no_log: true
"""
RETURN = r"""
former: {description: Old content by file name; only files that are there and differ., type: dict, returned: always}
missing: {description: Names of files that are not there., type: list, returned: always}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def compare(files: list[dict[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Return the old content of files that differ, by name, and the names of those that are not there."""
    former, missing = {}, []
    for item in files:
        path = Path(item["path"])
        try:
            content = path.read_text().rstrip("\n")
        except FileNotFoundError:
            missing.append(path.name)
            continue
        if content != item["secret"].rstrip("\n"):
            former[path.name] = content
    return former, missing


def main() -> None:
    """Run as an Ansible module."""
    # Not no_log on the argument: Ansible would mask the result wherever old and new share a part.
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "required": True, "no_log": False}},
        supports_check_mode=True,
    )
    former, missing = compare(module.params["files"])
    module.exit_json(changed=False, former=former, missing=missing, invocation={})


if __name__ == "__main__":
    main()
