#!/usr/bin/python
"""The metadata database at this venv's version, with its first user."""

from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_metadata
short_description: Migrate Airflow's metadata database and keep its administrator
description:
  - Migrates only when the database is not at the versions that this venv left it at. Starting Airflow to learn that
    costs seconds, so the venv remembers them and the check is one SQL query.
  - Runs with the Python of Airflow's venv.
options:
  venv: {description: Airflow's venv., type: path, required: true}
  user: {description: Name of the administrator., required: true}
  email: {description: The administrator's e-mail address., required: true}
  password: {description: The administrator's password., required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""
EXAMPLES = r"""
- name: Migrate the metadata database
  airflow_metadata:
    venv: /opt/airflow/venvs/3.3.2-0a1b2c3d
    user: admin
    email: admin@example.com
    password: "{{ airflow_admin_password }}"
"""
RETURN = r"""
actions: {description: What was (in check mode - would be) done., type: list, elements: str, returned: always}
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.airflow_runtime import credential, enter_airflow, environment, quiet_stdout
from ansible.module_utils.basic import AnsibleModule

TABLES = ("alembic_version", "alembic_version_fab")


def versions(cursor: Any) -> dict[str, list[str]]:
    """Return the migration heads by version table; empty on a database that was never migrated."""
    found = {}
    for table in TABLES:
        cursor.execute("SELECT to_regclass(%s)", (table,))
        if cursor.fetchone()[0]:
            cursor.execute(f"SELECT version_num FROM {table} ORDER BY 1")  # noqa: S608 - a constant of ours
            found[table] = [row[0] for row in cursor.fetchall()]
    return found


def user_action(row: tuple[str, bool] | None, wanted: dict[str, str], matches: Any) -> str | None:
    """Say what the administrator needs: None, or a sentence. ``row`` is (password hash, active)."""
    if row is None:
        return f"create the user {wanted['user']}"
    stored, active = row
    if not active:
        return f"activate the user {wanted['user']}"
    return None if matches(stored, wanted["password"]) else f"set the password of {wanted['user']}"


def keep_user(wanted: dict[str, str]) -> None:
    """Create the administrator, or set its password."""
    enter_airflow()
    with quiet_stdout():
        from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

        with get_application_builder() as builder:
            manager = builder.sm
            user = manager.find_user(username=wanted["user"])
            if user is None:
                role = manager.find_role("Admin")
                if not manager.add_user(
                    wanted["user"], "Platform", "Administrator", wanted["email"], role, wanted["password"]
                ):
                    raise RuntimeError(
                        f"FAB refused to create {wanted['user']}: is {wanted['email']} another user's address?"
                    )
            else:
                user.active = True
                manager.update_user(user)
                manager.reset_password(user.id, wanted["password"])


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "venv": {"type": "path", "required": True},
            "user": {"required": True},
            "email": {"required": True},
            "password": {"required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    p, actions = module.params, []
    try:
        import psycopg2
        from werkzeug.security import check_password_hash

        url = credential("sql_alchemy_conn").replace("+psycopg2", "", 1)
    except (ImportError, FileNotFoundError) as error:
        if not module.check_mode:
            module.fail_json(msg=f"Airflow is not installed on this host: {error}")
        actions = ["migrate the metadata database", f"create the user {p['user']}"]
        module.exit_json(changed=True, actions=actions, diff={"before": "", "after": "\n".join(actions) + "\n"})
        return
    remembered = Path(p["venv"], "metadata-versions.json")
    try:
        with psycopg2.connect(url, connect_timeout=10) as connection, connection.cursor() as cursor:
            before = versions(cursor)
            row = None
            if "alembic_version_fab" in before:
                cursor.execute("SELECT password, active FROM ab_user WHERE username = %s", (p["user"],))
                row = cursor.fetchone()
    except psycopg2.OperationalError as error:
        # The text names host, database and role; libpq never puts the password into it.
        module.fail_json(
            msg=f"The metadata database does not answer: {str(error).strip()}. Check airflow_metadata_host, the role's "
            "password (airflow_metadata_password) and that pg_hba and the firewall let this host in."
        )
    current = before and remembered.exists() and json.loads(remembered.read_text()) == before
    if not current:
        actions.append("migrate the metadata database")
        if not module.check_mode:
            # fmt: off
            done = subprocess.run(
                [f"{p['venv']}/bin/airflow", "db", "migrate"], env=environment(), cwd="/",
                user="airflow", group="airflow", extra_groups=[], capture_output=True, text=True, check=False,
            )
            # fmt: on
            if done.returncode:
                module.fail_json(
                    msg="`airflow db migrate` failed", stderr=done.stderr[-4000:], stdout=done.stdout[-4000:]
                )
            with psycopg2.connect(url, connect_timeout=10) as connection, connection.cursor() as cursor:
                after = versions(cursor)
            remembered.write_text(json.dumps(after))
            if after == before:
                actions.pop()  # another host of the control plane had migrated already
    action = user_action(row, p, check_password_hash)
    if action:
        actions.append(action)
        if not module.check_mode:
            try:
                keep_user(p)
            except RuntimeError as error:
                module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(actions), actions=actions, diff={"before": "", "after": "".join(f"{a}\n" for a in actions)}
    )


if __name__ == "__main__":
    main()
