#!/usr/bin/python
"""Everything that Airflow encrypts, under the first of its Fernet keys."""

# ruff: noqa: S608 - statements are made of the names in this file
from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_fernet
short_description: Encrypt connections, variables and triggers with the first Fernet key
description:
  - Looks whether the first of O(keys) decrypts every field, without Airflow's imports. If another one is needed for
    some, those are encrypted anew, in one transaction.
  - In check mode it only looks, and takes O(keys) for those to come. A field that none of them decrypts is a failure.
  - Runs with the Python of Airflow's venv.
options:
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
    keys: "{{ airflow_fernet_key }}"
    database_urls: ["{{ url }}"]
"""
RETURN = r"""
fields: {description: Number of encrypted fields., type: int, returned: always}
stale: {description: How many of them were not encrypted with the first key., type: int, returned: always}
passwords: {description: Passwords of O(connections) by id., type: dict, returned: always}
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# What Airflow encrypts: table, column with the text, condition, how to call a row. A worker has no key: the arguments
# of triggers that it hands over are plain JSON, and the command `airflow rotate-fernet-key` of 3.3.2 fails on them.
COLUMNS = (
    ("connection", "password", "is_encrypted AND password <> ''", "'connection ' || conn_id"),
    ("connection", "extra", "is_extra_encrypted AND extra <> ''", "'extra of connection ' || conn_id"),
    ("variable", "val", "is_encrypted AND val <> ''", "'variable ' || key"),
    ("trigger", "kwargs", "starts_with(kwargs, 'gAAAA')", "'trigger ' || id"),
)


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


def read(cursor: Any) -> list[tuple[str, str]]:
    """Return every encrypted field: what it is, and its text."""
    query = " UNION ALL ".join(
        f"SELECT {name}, {column} FROM {table} WHERE {condition}" for table, column, condition, name in COLUMNS
    )
    cursor.execute(query)
    return [(str(name), str(text)) for name, text in cursor.fetchall()]


def rotate(cursor: Any, stale: Sequence[str], keys: str) -> None:
    """Encrypt the stale fields with the first key; one that has been written meanwhile is left as it is."""
    from cryptography.fernet import Fernet, MultiFernet

    fernet = MultiFernet([Fernet(key.strip().encode()) for key in keys.split(",")])
    for table, column, condition, name in COLUMNS:
        cursor.execute(f"SELECT id, {column} FROM {table} WHERE {condition} AND {name} = ANY(%s)", (list(stale),))
        for number, text in cursor.fetchall():
            cursor.execute(
                f"UPDATE {table} SET {column} = %s WHERE id = %s AND {column} = %s",
                (fernet.rotate(text.encode()).decode(), number, text),
            )


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "keys": {"type": "str", "required": True, "no_log": True},
            "database_urls": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "connections": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    p = module.params
    try:
        connection = connect(p["database_urls"])
        cursor = connection.cursor()
        fields = read(cursor)
    except Exception as error:  # libpq's; it names host and role, never the password
        module.fail_json(msg=f"The metadata database does not answer: {' '.join(str(error).split())}")
    count, stale, lost = judge(fields, p["keys"])
    if lost:
        module.fail_json(
            msg=f"airflow_fernet_key does not decrypt: {', '.join(lost[:20])}. To rotate it write new,old with a comma"
            " between them; the old one may go when all is encrypted with the new one."
        )
    if stale and not module.check_mode:
        rotate(cursor, stale, p["keys"])
        connection.commit()
        if left := judge(read(cursor), p["keys"])[1]:
            module.fail_json(
                msg=f"{len(left)} fields are under an old key still: {', '.join(left[:20])}. Run it again."
            )
    connection.close()
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
