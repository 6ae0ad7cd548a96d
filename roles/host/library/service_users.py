#!/usr/bin/python
"""Ansible module: the system users and groups that services run as."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_users
short_description: Keep a set of system users and their groups
description:
  - Takes the whole list in one call. Each user gets a group of its own name, no password and no login shell.
  - Home folders are not made; the role that owns a folder makes it.
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  users:
    description: The users.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the user and of its own group., type: str, required: true}
      home: {description: Home folder., type: path, required: true}
      groups:
        description: Additional groups; made when missing. Others that the user is in are taken away.
        type: list
        elements: str
        default: []
"""

EXAMPLES = r"""
- name: Make the users that Airflow's services run as
  service_users:
    users:
      - {name: airflow, home: /var/lib/airflow}
"""

RETURN = r"""
commands:
  description: What was (in check mode, would be) run.
  type: list
  elements: str
  returned: always
"""

import grp
import pwd
import shlex
from typing import Any

from ansible.module_utils.basic import AnsibleModule

SHELL = "/usr/sbin/nologin"


def current_users() -> dict[str, dict[str, Any]]:
    """Return every user of the host: own group, home, shell and additional groups."""
    group_names = {entry.gr_gid: entry.gr_name for entry in grp.getgrall()}
    members: dict[str, list[str]] = {}
    for group in grp.getgrall():
        for member in group.gr_mem:
            members.setdefault(member, []).append(group.gr_name)
    return {
        user.pw_name: {
            "group": group_names.get(user.pw_gid, str(user.pw_gid)),
            "home": user.pw_dir,
            "shell": user.pw_shell,
            "groups": sorted(members.get(user.pw_name, [])),
        }
        for user in pwd.getpwall()
    }


def wanted_user(user: dict[str, Any]) -> dict[str, Any]:
    """Return one wanted user in the shape of ``current_users``."""
    return {"group": user["name"], "home": user["home"], "shell": SHELL, "groups": sorted(set(user["groups"]))}


def plan(users: list[dict[str, Any]], found: dict[str, dict[str, Any]], groups: set[str]) -> list[list[str]]:
    """Return the commands that turn the ``found`` users and ``groups`` of the host into the wanted ones."""
    commands: list[list[str]] = []
    known = set(groups)
    for user in users:
        for group in [user["name"], *sorted(set(user["groups"]))]:
            if group not in known:
                commands.append(["groupadd", "--system", group])
                known.add(group)
    for user in users:
        before, after = found.get(user["name"]), wanted_user(user)
        if before == after:
            continue
        command = ["useradd", "--system", "--no-create-home"] if before is None else ["usermod"]
        command += ["--gid", after["group"], "--home-dir" if before is None else "--home", after["home"]]
        command += ["--shell", after["shell"]]
        if after["groups"] or before is not None:
            command += ["--groups", ",".join(after["groups"])]
        commands.append([*command, user["name"]])
    return commands


def describe(name: str, user: dict[str, Any] | None) -> str:
    """Return one line of the diff."""
    if user is None:
        return ""
    return (
        f"{name}: group={user['group']} groups={','.join(user['groups'])} home={user['home']} shell={user['shell']}\n"
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "users": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "home": {"type": "path", "required": True},
                    "groups": {"type": "list", "elements": "str", "default": []},
                },
            }
        },
        supports_check_mode=True,
    )
    users = module.params["users"]
    found = current_users()
    commands = plan(users, found, {entry.gr_name for entry in grp.getgrall()})
    if not module.check_mode:
        for command in commands:
            module.run_command(command, check_rc=True)
    module.exit_json(
        changed=bool(commands),
        commands=[shlex.join(command) for command in commands],
        diff={
            "before_header": "users",
            "after_header": "users",
            "before": "".join(describe(user["name"], found.get(user["name"])) for user in users),
            "after": "".join(describe(user["name"], wanted_user(user)) for user in users),
        },
    )


if __name__ == "__main__":
    main()
