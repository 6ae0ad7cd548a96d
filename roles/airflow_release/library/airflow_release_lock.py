#!/usr/bin/python
"""Ansible module: a lock of this host that is held for as long as one of its processes lives."""

from __future__ import annotations

import fcntl
import json
import os
import select
import time
from datetime import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: airflow_release_lock
short_description: Let one deployment at a time touch the releases
description:
  - Takes the lock, or fails at once with who has it, since when and from where.
  - The lock belongs to a process on the controller (the C(ansible-playbook) that runs this) and is free when that
    process has ended, however it ended. The action plugin opens a session to this host that ends with that process, and
    a process here holds the lock while the session lives. A controller that vanishes from the network loses it after
    30 s.
  - One C(ansible-playbook) may take it any number of times.
attributes:
  check_mode: {support: full, details: Takes no lock and needs none.}
options:
  path:
    description: The lock's file.
    type: path
    default: /run/airflow_release.lock
  session:
    description: Process of this host to hold the lock for. Filled in by the action plugin.
    type: int
  owner:
    description: Who takes it. Filled in by the action plugin.
    type: dict
"""

EXAMPLES = r"""
- name: Lock the releases
  airflow_release_lock:
  run_once: true
"""

RETURN = r"""
holder:
  description: Process on the controller that holds the session.
  type: int
  returned: always
owner:
  description: Who has it, from where, since when.
  type: dict
  returned: always
"""


def sentence(owner: dict[str, Any]) -> str:
    """Say who has the lock."""
    if not owner:
        return "Another deployment has just begun."
    seconds = time.time() - datetime.fromisoformat(owner["since"]).timestamp()
    return (
        f"{owner['by']} on {owner['from']} is deploying since {owner['since']} ({seconds:.0f} s ago, process"
        f" {owner['process']} there)."
    )


def hold(lock: int, session: int) -> None:
    """Keep the lock in a process of its own until the session has ended."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for descriptor in range(3, 1024):
        if descriptor not in (lock, session):
            try:
                os.close(descriptor)
            except OSError:
                continue
    select.select([session], [], [])
    os.ftruncate(lock, 0)
    os._exit(0)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/run/airflow_release.lock"},
            "session": {"type": "int", "required": True},
            "owner": {"type": "dict", "required": True},
        },
    )
    owner = module.params["owner"]
    lock = os.open(module.params["path"], os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(lock, 4096, 0)
        other = json.loads(text) if text else {}
        if all(other.get(name) == owner[name] for name in ("from", "process")):
            module.exit_json(changed=False, holder=other["holder"])
        module.fail_json(
            msg=f"{sentence(other)} Nothing was changed. Wait for it, or end that process: the lock goes with it."
        )
    try:
        session = os.pidfd_open(module.params["session"])
    except ProcessLookupError:
        module.fail_json(msg="The session that is to hold the lock has ended already.")
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(owner).encode(), 0)
    hold(lock, session)
    module.exit_json(changed=False, holder=owner["holder"])


if __name__ == "__main__":
    main()
