#!/usr/bin/python
"""Everything that Airflow encrypts, under the first of its Fernet keys."""

from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_fernet
short_description: Encrypt connections, variables and triggers with the first Fernet key
description:
  - Looks whether the first of O(keys) decrypts every field, without Airflow's imports. If another one is needed for
    some, C(airflow rotate-fernet-key) encrypts all anew, in one process and one transaction.
  - In check mode it only looks, and takes O(keys) for those to come. A field that none of them decrypts is a failure.
  - Runs with the Python of Airflow's venv.
options:
  venv: {description: Airflow's venv., type: path, required: true}
  keys: {description: "The keys, with commas between them: the first encrypts, all decrypt.", type: str, required: true}
  database_urls:
    description: Addresses of the metadata database; the first whose password is accepted counts.
    type: list
    elements: str
    required: true
  connections:
    description: Connections whose password is returned, decrypted; the task needs C(no_log) then.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: Encrypt with the first key
  airflow_fernet:
    venv: /opt/airflow/venv
    keys: "{{ airflow_fernet_key }}"
    database_urls: ["{{ url }}"]
"""
RETURN = r"""
fields: {description: Number of encrypted fields., type: int, returned: always}
stale: {description: How many of them were not encrypted with the first key., type: int, returned: always}
passwords: {description: Passwords of O(connections) by id., type: dict, returned: always}
"""

import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

from ansible.module_utils.airflow_runtime import environment
from ansible.module_utils.basic import AnsibleModule

FIELDS = """
SELECT 'connection ' || conn_id, password FROM connection WHERE is_encrypted AND password <> ''
UNION ALL SELECT 'extra of connection ' || conn_id, extra FROM connection WHERE is_extra_encrypted AND extra <> ''
UNION ALL SELECT 'variable ' || key, val FROM variable WHERE is_encrypted AND val <> ''
UNION ALL SELECT 'trigger ' || id, kwargs FROM trigger WHERE kwargs LIKE 'gAAAA%'
"""


def judge(fields: Iterable[tuple[str, str]], keys: str) -> tuple[int, list[str], list[str]]:
    """Return the number of fields, those that the first key does not decrypt, and those that none does."""
    from cryptography.fernet import Fernet, InvalidToken

    parsed = [Fernet(key.strip().encode()) for key in keys.split(",")]
    count, stale, lost = 0, [], []
    for name, text in fields:
        count += 1
        for position, key in enumerate(parsed):
            try:
                key.decrypt(text.encode())
            except InvalidToken:
                continue
            if position:
                stale.append(name)
            break
        else:
            lost.append(name)
    return count, stale, lost


def connect(urls: Sequence[str]) -> Any:
    """Return a session on the metadata database."""
    import psycopg2

    for url in urls:
        try:
            return psycopg2.connect(url.replace("+psycopg2", "", 1), connect_timeout=10)
        except psycopg2.OperationalError as error:
            if url == urls[-1] or "password authentication failed" not in str(error):
                raise
    raise ValueError("no address")


def read(urls: Sequence[str]) -> list[tuple[str, str]]:
    """Return every encrypted field: what it is, and its text."""
    connection = connect(urls)
    try:
        with connection.cursor() as cursor:
            cursor.execute(FIELDS)
            return [(str(name), str(text)) for name, text in cursor.fetchall()]
    finally:
        connection.close()


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "venv": {"type": "path", "required": True},
            "keys": {"type": "str", "required": True, "no_log": True},
            "database_urls": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "connections": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    p = module.params
    try:
        fields = read(p["database_urls"])
    except Exception as error:  # libpq's; it names host and role, never the password
        module.fail_json(msg=f"The metadata database does not answer: {' '.join(str(error).split())}")
    count, stale, lost = judge(fields, p["keys"])
    if lost:
        module.fail_json(
            msg=f"airflow_fernet_key does not decrypt: {', '.join(lost[:20])}. To rotate it write new,old with a comma"
            " between them; the old one may go when all is encrypted with the new one."
        )
    if stale and not module.check_mode:
        # fmt: off
        done = subprocess.run(
            [f"{p['venv']}/bin/airflow", "rotate-fernet-key"], env=environment(), cwd="/",
            user="airflow", group="airflow", extra_groups=[], capture_output=True, text=True, check=False,
        )
        # fmt: on
        left = judge(read(p["database_urls"]), p["keys"])[1]
        if done.returncode or left:
            module.fail_json(
                msg=f"`airflow rotate-fernet-key` left {len(left)} fields under an old key", stderr=done.stderr[-4000:]
            )
    passwords = {}
    if p["connections"]:
        from cryptography.fernet import Fernet, MultiFernet

        keys = MultiFernet([Fernet(key.strip().encode()) for key in p["keys"].split(",")])
        texts = dict(fields)
        passwords = {
            name: keys.decrypt(texts[f"connection {name}"].encode()).decode()
            for name in p["connections"]
            if f"connection {name}" in texts
        }
    module.exit_json(changed=bool(stale), fields=count, stale=len(stale), passwords=passwords)


if __name__ == "__main__":
    main()
