#!/usr/bin/python
"""Roles, databases, schemas and their privileges of a PostgreSQL server as one desired state."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_objects
short_description: Reconcile roles, databases, schemas and privileges in one call
description:
  - Reads what the server has, compares it with what is wanted, changes what differs and shows it as one diff.
    Check mode stops before the change. Dropping a role or a database stays a decision of a person.
  - The given roles and C(PUBLIC) end up with the given privileges on the given databases and schemas and no others.
    Other roles (of an administrator, of a monitoring system) keep theirs.
  - A password reaches the server as a SCRAM-SHA-256 verifier (RFC 5802, RFC 7677) made here. Whether it differs is
    found by computing the verifier again with the salt and the iterations of the stored one.
options:
  socket_directory: {description: Folder of the server's Unix socket., type: path, default: /run/postgresql}
  port: {description: The server's port., type: int, default: 5432}
  login_user: {description: Role and system user of the session., type: str, default: postgres}
  roles:
    description: Login roles without any other attribute.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name., type: str, required: true}
      password: {description: Printable ASCII., type: str, required: true}
      settings: {description: Settings of every session of this role., type: dict, default: {}}
      member_of: {description: Roles whose privileges it has., type: list, elements: str, default: []}
      connection_limit: {description: Most sessions at a time; -1 has no limit., type: int, default: -1}
  databases:
    description: Databases and who may do what in them. C(PUBLIC) may do nothing.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name., type: str, required: true}
      owner: {description: Owning role., type: str, required: true}
      locale: {description: Locale of a new database., type: str, default: C.UTF-8}
      connect: {description: Other roles that may connect., type: list, elements: str, default: []}
      closed_functions:
        description: >-
          Regular expressions over names of functions in C(pg_catalog). What C(PUBLIC) could call of them, only the
          owner can.
        type: list
        elements: str
        default: []
      closed_languages:
        description: Procedural languages that the owner alone may use.
        type: list
        elements: str
        default: []
      schemas:
        description: Schemas to have; V(public) is there always, closed to everybody but the owner and its readers.
        type: list
        elements: dict
        default: []
        suboptions:
          name: {description: Name., type: str, required: true}
          owner: {description: Owning role; without it the database's owner., type: str}
          readers:
            description: Roles that may read all tables, those of today and those that the owner will make.
            type: list
            elements: str
            default: []
          users:
            description: >-
              Roles that may use the schema and get their privileges on its tables from the tables' owner; these are
              left alone.
            type: list
            elements: str
            default: []
"""

RETURN = r"""
changes:
  description: What was (in check mode, would be) changed, one short text each.
  type: list
  returned: always
"""

import base64
import hashlib
import hmac
import json
import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgresql_session import OPTIONS, NoServerError, session

Key = tuple[str, ...]
State = dict[Key, str]

PUBLIC = "PUBLIC"
ITERATIONS = 4096  # PostgreSQL's own default; our passwords are long and random
NAME = re.compile(r"[a-z_][a-z0-9_$-]{0,62}")
VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
# Kinds of entries that are changed in a session of their database.
OF_DATABASE = ("schema", "tables", "future tables", "functions", "language")
CURRENT_PASSWORD, OTHER_PASSWORD, NO_PASSWORD = "<hidden>", "<hidden, another one>", "none"


def scram_verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return the text that PostgreSQL stores for `password` (RFC 5803's form, as in its pg_authid.rolpassword)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    salt_text, stored_text, server_text = (base64.b64encode(raw).decode() for raw in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${iterations}:{salt_text}${stored_text}:{server_text}"


def password_matches(password: str, stored: str | None) -> bool:
    """Tell whether `stored` (a verifier, an MD5 hash or nothing) is a SCRAM verifier of `password`."""
    found = VERIFIER.fullmatch(stored or "")
    if not found:
        return False
    return hmac.compare_digest(
        scram_verifier(password, base64.b64decode(found.group(2)), int(found.group(1))), stored or ""
    )


def quote(name: str) -> str:
    """Quote an identifier; PUBLIC is a keyword."""
    return name if name == PUBLIC else '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a string constant (standard_conforming_strings is on since PostgreSQL 9.1)."""
    return "'" + text.replace("'", "''") + "'"


def setting_text(value: Any) -> str:
    """Return a setting's value as the server stores it; a list (search_path) quotes only names that need it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(item if NAME.fullmatch(item) and "-" not in item else quote(item) for item in value)
    return str(value)


def setting_sql(value: Any) -> str:
    """Return a setting's value for ALTER ROLE SET; the elements of a list are constants of their own."""
    items = value if isinstance(value, list) else [setting_text(value)]
    return ", ".join(literal(str(item)) for item in items)


def schemas_of(database: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a database's schemas with owner and creator filled in, `public` among them.

    Since PostgreSQL 15 `public` belongs to pg_database_owner, whose only member is the owner of the database. The
    creator is the role that makes the tables, whose default privileges the readers need.
    """
    given = {schema["name"]: schema for schema in database["schemas"]}
    given.setdefault("public", {"name": "public", "owner": None, "readers": [], "users": []})
    filled = []
    for name, schema in sorted(given.items()):
        default = "pg_database_owner" if name == "public" else database["owner"]
        owner = schema["owner"] or default
        creator = database["owner"] if owner == "pg_database_owner" else owner
        filled.append({**schema, "owner": owner, "creator": creator})
    return filled


def wanted_state(roles: list[dict[str, Any]], databases: list[dict[str, Any]]) -> State:
    """Flatten the wanted objects: one entry for each thing that can differ on its own."""
    state: State = {}
    for role in roles:
        name = role["name"]
        limit = "" if role["connection_limit"] == -1 else f" CONNECTION LIMIT {role['connection_limit']}"
        state["role", name, "attributes"] = f"LOGIN{limit}"
        state["role", name, "password"] = CURRENT_PASSWORD
        for setting, value in role["settings"].items():
            state["role", name, "setting", setting] = setting_text(value)
        for group in role["member_of"]:
            state["role", name, "member of", group] = "yes"
    for database in databases:
        name = database["name"]
        state["database", name, "owner"] = database["owner"]
        for role_name in database["connect"]:
            state["database", name, "privileges of", role_name] = "CONNECT"
        for schema in schemas_of(database):
            state["schema", name, schema["name"], "owner"] = schema["owner"]
            for user in schema["users"]:
                state["schema", name, schema["name"], "privileges of", user] = "USAGE"
            for reader in schema["readers"]:
                state["schema", name, schema["name"], "privileges of", reader] = "USAGE"
                state["tables", name, schema["name"], "privileges of", reader] = "SELECT"
                state["future tables", name, schema["name"], "privileges of", reader] = "SELECT"
    return state


def managed_grantees(roles: list[dict[str, Any]], databases: list[dict[str, Any]]) -> set[str]:
    """Return whose privileges are compared: PUBLIC, the given roles, and every role that is named as a grantee."""
    named = {PUBLIC, *(role["name"] for role in roles)}
    for database in databases:
        named.update(database["connect"])
        for schema in database["schemas"]:
            named.update(schema["readers"], schema["users"])
    return named


def differences(current: State, wanted: State) -> list[tuple[Key, str, str]]:
    """Return (key, before, after) of what differs; an empty text stands for nothing.

    Privileges on tables count only where tables exist: GRANT ... ON ALL TABLES changes nothing in an empty schema.
    """
    found = []
    for key in sorted(current.keys() | wanted.keys()):
        if key[0] == "tables" and ("has tables", *key[1:3]) not in current:
            continue
        if key[0] == "has tables":
            continue
        before, after = current.get(key, ""), wanted.get(key, "")
        if before != after:
            found.append((key, before, after))
    return found


def describe(key: Key) -> str:
    """Return a key as a short text for diffs."""
    if key[0] in OF_DATABASE:
        return f"{key[0]} {key[1]}.{key[2]}: {' '.join(key[3:])}"
    return f"{key[0]} {key[1]}: {' '.join(key[2:])}"


def statements(
    changed: list[tuple[Key, str, str]], roles: list[dict[str, Any]], databases: list[dict[str, Any]]
) -> list[str]:
    """Return the SQL for those changes, in an order in which it can run."""
    role_of = {role["name"]: role for role in roles}
    creator_of = {
        (database["name"], schema["name"]): schema["creator"]
        for database in databases
        for schema in schemas_of(database)
    }
    owner_of = {database["name"]: database["owner"] for database in databases}
    locale_of = {database["name"]: database["locale"] for database in databases}
    ordered: list[tuple[int, str]] = []

    def regrant(rank: int, target: str, grantee: str, before: str, after: str, prefix: str = "") -> None:
        if before:
            ordered.append((rank, f"{prefix}REVOKE ALL ON {target} FROM {quote(grantee)}"))
        if after:
            ordered.append((rank + 1, f"{prefix}GRANT {after} ON {target} TO {quote(grantee)}"))

    for key, before, after in changed:
        kind, name = key[0], key[1]
        if kind == "role":
            if key[2] == "attributes":
                verb = "ALTER" if before else "CREATE"
                # Without CONNECTION LIMIT in the wanted text an old limit must go too.
                limit = "" if "LIMIT" in after else " CONNECTION LIMIT -1"
                ordered.append(
                    (
                        0,
                        f"{verb} ROLE {quote(name)} WITH NOSUPERUSER NOCREATEDB NOCREATEROLE INHERIT NOREPLICATION"
                        f" NOBYPASSRLS VALID UNTIL 'infinity' {after}{limit}",
                    )
                )
            elif key[2] == "password":
                verifier = scram_verifier(role_of[name]["password"], os.urandom(16))
                ordered.append((1, f"ALTER ROLE {quote(name)} PASSWORD {literal(verifier)}"))
            elif key[2] == "setting":
                value = f"SET {quote(key[3])} = {setting_sql(role_of[name]['settings'][key[3]])}" if after else ""
                ordered.append((2, f"ALTER ROLE {quote(name)} {value or f'RESET {quote(key[3])}'}"))
            else:
                verb, word = ("GRANT", "TO") if after else ("REVOKE", "FROM")
                ordered.append((2, f"{verb} {quote(key[3])} {word} {quote(name)}"))
        elif kind == "database":
            if key[2] == "owner" and not before:
                locale = literal(locale_of[name])
                ordered.append(
                    (
                        3,
                        f"CREATE DATABASE {quote(name)} OWNER {quote(after)} TEMPLATE template0 ENCODING 'UTF8'"
                        f" LC_COLLATE {locale} LC_CTYPE {locale}",
                    )
                )
            elif key[2] == "owner":
                ordered.append((3, f"ALTER DATABASE {quote(name)} OWNER TO {quote(after)}"))
            else:
                regrant(4, f"DATABASE {quote(name)}", key[3], before, after)
        elif kind == "functions":
            ordered.append((5, CLOSE_FUNCTIONS.format(pattern=literal(f"^({key[2]})$"), owner=quote(owner_of[name]))))
        elif kind == "language":
            ordered.append((5, f"GRANT USAGE ON LANGUAGE {quote(key[2])} TO {quote(owner_of[name])}"))
            ordered.append((5, f"REVOKE ALL ON LANGUAGE {quote(key[2])} FROM PUBLIC"))
        else:
            schema = quote(key[2])
            if key[3] == "owner":
                sql = f"ALTER SCHEMA {schema} OWNER TO" if before else f"CREATE SCHEMA {schema} AUTHORIZATION"
                ordered.append((6, f"{sql} {quote(after)}"))
            elif kind == "schema":
                regrant(7, f"SCHEMA {schema}", key[4], before, after)
            elif kind == "tables":
                regrant(9, f"ALL TABLES IN SCHEMA {schema}", key[4], before, after)
            else:
                creator = quote(creator_of[name, key[2]])
                prefix = f"ALTER DEFAULT PRIVILEGES FOR ROLE {creator} IN SCHEMA {schema} "
                regrant(11, "TABLES", key[4], before, after, prefix)
    return [sql for _rank, sql in sorted(ordered, key=lambda entry: entry[0])]


ROLES_QUERY = """
SELECT r.rolname, r.rolcanlogin, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
       r.rolbypassrls, r.rolconnlimit, coalesce(r.rolvaliduntil, 'infinity') <> 'infinity', a.rolpassword,
       coalesce((SELECT setconfig FROM pg_db_role_setting WHERE setrole = r.oid AND setdatabase = 0), '{}'),
       ARRAY(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid)
FROM pg_roles r JOIN pg_authid a ON a.oid = r.oid WHERE r.rolname = ANY(%s)
"""
DATABASES_QUERY = "SELECT datname, pg_get_userbyid(datdba) FROM pg_database WHERE datname = ANY(%s)"
# Each ACL query gives rows (object, grantee, privileges); the owner's own entries say nothing about others.
GRANTEE = "CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(acl.grantee)::text END"
PRIVILEGES = "string_agg(DISTINCT acl.privilege_type, ', ' ORDER BY acl.privilege_type)"
DATABASE_ACL_QUERY = f"""
SELECT d.datname, {GRANTEE}, {PRIVILEGES}
FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) acl
WHERE d.datname = ANY(%s) AND acl.grantee <> d.datdba GROUP BY 1, 2
"""  # noqa: S608 - built from constants only
SCHEMAS_QUERY = "SELECT nspname, pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = ANY(%s)"
SCHEMA_ACL_QUERY = f"""
SELECT n.nspname, {GRANTEE}, {PRIVILEGES}
FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) acl
WHERE n.nspname = ANY(%s) AND acl.grantee <> n.nspowner GROUP BY 1, 2
"""  # noqa: S608 - built from constants only
# One row for each table and grantee. Sequences are no tables to PostgreSQL's GRANT.
TABLE_ACL_QUERY = f"""
SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner),
       ARRAY(SELECT ROW_TO_JSON(x)::text FROM (
         SELECT {GRANTEE} AS grantee, {PRIVILEGES} AS privileges
         FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) acl
         WHERE acl.grantee <> c.relowner GROUP BY 1) x)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""  # noqa: S608 - built from constants only
DEFAULT_ACL_QUERY = f"""
SELECT n.nspname, pg_get_userbyid(a.defaclrole), {GRANTEE}, {PRIVILEGES}
FROM pg_default_acl a JOIN pg_namespace n ON n.oid = a.defaclnamespace, aclexplode(a.defaclacl) acl
WHERE n.nspname = ANY(%s) AND a.defaclobjtype = 'r' GROUP BY 1, 2, 3
"""  # noqa: S608 - built from constants only

# Only what PUBLIC may call: the functions that PostgreSQL keeps for superusers stay theirs.
PUBLIC_FUNCTIONS = """
SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ {pattern}
AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) acl WHERE acl.grantee = 0)
"""
CLOSE_FUNCTIONS = f"""
DO $close$ DECLARE found regprocedure; BEGIN
  FOR found IN {PUBLIC_FUNCTIONS} LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {{owner}}', found);
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', found);
  END LOOP;
END $close$
"""
LANGUAGES_QUERY = """
SELECT l.lanname FROM pg_language l, aclexplode(coalesce(l.lanacl, acldefault('l', l.lanowner))) acl
WHERE acl.grantee = 0 AND l.lanname = ANY(%s)
"""


def role_attributes(row: tuple[Any, ...]) -> str:
    """Return columns 2 to 10 of ROLES_QUERY as the text that `wanted_state` uses."""
    login, superuser, inherit, create_role, create_database, replication, bypass, limit, expires = row
    words = {
        "LOGIN": login,
        "SUPERUSER": superuser,
        "NOINHERIT": not inherit,
        "CREATEROLE": create_role,
        "CREATEDB": create_database,
        "REPLICATION": replication,
        "BYPASSRLS": bypass,
        "VALID UNTIL": expires,
    }
    text = " ".join(word for word, present in words.items() if present) or "NOLOGIN"
    return text if limit == -1 else f"{text} CONNECTION LIMIT {limit}"


def table_privileges(rows: list[tuple[str, str, str, list[str]]], grantees: set[str]) -> State:
    """Return entries ("has tables", schema) and ("tables", schema, grantee); what differs by table is 'mixed'."""
    per_schema: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for schema, _table, owner, acl in rows:
        granted = {entry["grantee"]: entry["privileges"] for entry in map(json.loads, acl)}
        per_schema.setdefault(schema, []).append((owner, granted))
    state: State = {}
    for schema, tables in per_schema.items():
        state["has tables", schema] = "yes"
        for grantee in grantees:
            seen = {granted.get(grantee, "") for owner, granted in tables if owner != grantee}
            if seen - {""}:
                state["tables", schema, grantee] = seen.pop() if len(seen) == 1 else "mixed"
    return state


class Server:
    """Reads the server's state and changes it."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Keep the module's parameters."""
        self.params = params
        self.roles: list[dict[str, Any]] = params["roles"]
        self.databases: list[dict[str, Any]] = params["databases"]
        self.grantees = managed_grantees(self.roles, self.databases)

    def read(self) -> State:
        """Return the state of everything that the wanted state names."""
        names = [database["name"] for database in self.databases]
        passwords = {role["name"]: role["password"] for role in self.roles}
        state: State = {}
        with session(self.params) as connection, connection.cursor() as cursor:
            cursor.execute(ROLES_QUERY, (list(passwords),))
            for name, *attributes, stored, settings, groups in cursor.fetchall():
                state["role", name, "attributes"] = role_attributes(tuple(attributes))
                matches = password_matches(passwords[name], stored)
                state["role", name, "password"] = (
                    CURRENT_PASSWORD if matches else OTHER_PASSWORD if stored else NO_PASSWORD
                )
                for entry in settings:
                    setting, value = entry.split("=", 1)
                    state["role", name, "setting", setting] = value
                for group in groups:
                    state["role", name, "member of", group] = "yes"
            cursor.execute(DATABASES_QUERY, (names,))
            existing = dict(cursor.fetchall())
            for name, owner in existing.items():
                state["database", name, "owner"] = owner
            cursor.execute(DATABASE_ACL_QUERY, (names,))
            for name, grantee, privileges in cursor.fetchall():
                if grantee in self.grantees:
                    state["database", name, "privileges of", grantee] = privileges
        for database in self.databases:
            if database["name"] in existing:
                state.update(self._read_database(database))
        return state

    def _read_database(self, database: dict[str, Any]) -> State:
        name, schemas = database["name"], schemas_of(database)
        schema_names = [schema["name"] for schema in schemas]
        creators = {schema["name"]: schema["creator"] for schema in schemas}
        state: State = {}
        with session(self.params, name) as connection, connection.cursor() as cursor:
            cursor.execute(SCHEMAS_QUERY, (schema_names,))
            for schema, owner in cursor.fetchall():
                state["schema", name, schema, "owner"] = owner
            cursor.execute(SCHEMA_ACL_QUERY, (schema_names,))
            for schema, grantee, privileges in cursor.fetchall():
                if grantee in self.grantees:
                    state["schema", name, schema, "privileges of", grantee] = privileges
            cursor.execute(TABLE_ACL_QUERY, (schema_names,))
            for key, value in table_privileges(cursor.fetchall(), self.grantees).items():
                if key[0] == "has tables":
                    state["has tables", name, key[1]] = value
                else:
                    state["tables", name, key[1], "privileges of", key[2]] = value
            cursor.execute(DEFAULT_ACL_QUERY, (schema_names,))
            for schema, creator, grantee, privileges in cursor.fetchall():
                if creator == creators[schema] and grantee in self.grantees and grantee != creator:
                    state["future tables", name, schema, "privileges of", grantee] = privileges
            for pattern in database["closed_functions"]:
                cursor.execute(PUBLIC_FUNCTIONS.format(pattern="%s"), (f"^({pattern})$",))
                if cursor.fetchall():
                    state["functions", name, pattern, "privileges of", PUBLIC] = "EXECUTE"
            cursor.execute(LANGUAGES_QUERY, (database["closed_languages"],))
            for (language,) in cursor.fetchall():
                state["language", name, language, "privileges of", PUBLIC] = "USAGE"
        for schema in schemas:
            for user in schema["users"]:
                state.pop(("tables", name, schema["name"], "privileges of", user), None)
        return state

    def apply(self, wanted: State) -> None:
        """Change what differs. What a new object brings along (PUBLIC may connect) is read again and changed too."""
        for kinds in (("role",), ("database",), ("database", *OF_DATABASE)):
            changed = [entry for entry in differences(self.read(), wanted) if entry[0][0] in kinds]
            # CREATE DATABASE runs in no transaction; all other changes of one database are one transaction.
            for name in sorted({entry[0][1] for entry in changed if entry[0][0] in OF_DATABASE}):
                mine = [entry for entry in changed if entry[0][0] not in ("role", "database") and entry[0][1] == name]
                self._execute(name, mine, in_transaction=True)
            of_cluster = [entry for entry in changed if entry[0][0] in ("role", "database")]
            self._execute("postgres", of_cluster, in_transaction="database" not in kinds)

    def _execute(self, database: str, changed: list[tuple[Key, str, str]], *, in_transaction: bool) -> None:
        sql = statements(changed, self.roles, self.databases)
        if not sql:
            return
        with session(self.params, database) as connection, connection.cursor() as cursor:
            connection.autocommit = not in_transaction
            for statement in sql:
                cursor.execute(statement)
            if in_transaction:
                connection.commit()


def check_input(roles: list[dict[str, Any]], databases: list[dict[str, Any]]) -> str | None:
    """Return what is wrong with the wanted objects, or None."""
    names = [role["name"] for role in roles] + [database["name"] for database in databases]
    names += [schema["name"] for database in databases for schema in database["schemas"]]
    for name in names:
        if not NAME.fullmatch(name):
            return f"the name {name!r} needs lower case letters, digits, _, $ or - (at most 63, no leading digit)"
    for role in roles:
        # Other characters would have to go through SASLprep (RFC 4013) first, and URLs would have to escape them.
        if not (role["password"] and role["password"].isascii() and role["password"].isprintable()):
            return f"the password of role {role['name']} must not be empty and must be printable ASCII"
    return None


def main() -> None:
    """Read, compare, show, change."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "roles": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "password": {"type": "str", "required": True, "no_log": True},
                    "settings": {"type": "dict", "default": {}},
                    "member_of": {"type": "list", "elements": "str", "default": []},
                    "connection_limit": {"type": "int", "default": -1},
                },
            },
            "databases": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "owner": {"type": "str", "required": True},
                    "locale": {"type": "str", "default": "C.UTF-8"},
                    "connect": {"type": "list", "elements": "str", "default": []},
                    "closed_functions": {"type": "list", "elements": "str", "default": []},
                    "closed_languages": {"type": "list", "elements": "str", "default": []},
                    "schemas": {
                        "type": "list",
                        "elements": "dict",
                        "default": [],
                        "options": {
                            "name": {"type": "str", "required": True},
                            "owner": {"type": "str"},
                            "readers": {"type": "list", "elements": "str", "default": []},
                            "users": {"type": "list", "elements": "str", "default": []},
                        },
                    },
                },
            },
        },
        supports_check_mode=True,
    )
    roles, databases = module.params["roles"], module.params["databases"]
    if problem := check_input(roles, databases):
        module.fail_json(msg=problem)
    server, wanted = Server(module.params), wanted_state(roles, databases)
    try:
        current = server.read()
    except NoServerError as error:
        if not module.check_mode:
            module.fail_json(msg=str(error))
        current = {}  # a pristine host: everything would be made
    except Exception as error:  # psycopg2 is not importable everywhere, so its own class can't be named here
        module.fail_json(msg=f"Reading the server's roles and databases failed: {error}")
        return

    found = differences(current, wanted)
    if found and not module.check_mode:
        try:
            server.apply(wanted)
        except Exception as error:
            module.fail_json(msg=f"Changing the server's roles and databases failed: {error}")
    module.exit_json(
        changed=bool(found),
        changes=[describe(key) for key, _before, _after in found],
        diff={
            "before": "".join(f"{describe(key)} = {before}\n" for key, before, _after in found if before),
            "after": "".join(f"{describe(key)} = {after}\n" for key, _before, after in found if after),
        },
    )


if __name__ == "__main__":
    main()
