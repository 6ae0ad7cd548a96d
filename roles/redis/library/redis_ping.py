#!/usr/bin/python
"""Whether a Redis server serves a user and nobody without a password."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_ping
short_description: Ping a Redis server as an ACL user
description:
  - Speaks the protocol itself, so the password appears in no argument list, no environment and no file.
  - A PING without a password must be refused; one with it must be answered at each address. Redis answers PING with an
    error when it can't write its append-only file.
  - Waits up to O(timeout) seconds for a server that starts or still loads its data.
options:
  addresses: {description: Addresses to ask., type: list, elements: str, required: true}
  port: {description: The server's port., type: int, default: 6379}
  username: {description: ACL user., type: str, required: true}
  password: {description: The user's password., type: str, required: true}
  timeout: {description: Seconds to wait for a good answer., type: int, default: 30}
"""

RETURN = r"""
problems:
  description: One sentence for each thing that is wrong; empty on a healthy server.
  type: list
  returned: always
"""

import socket
import time

from ansible.module_utils.basic import AnsibleModule


def encode(*words: str) -> bytes:
    """Return a command in Redis's serialization protocol (RESP: an array of bulk strings)."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def ask(address: str, port: int, *commands: tuple[str, ...]) -> list[str]:
    """Send the commands over one connection and return each one's line of answer, like '+PONG' or '-NOAUTH ...'."""
    with socket.create_connection((address, port), timeout=5) as connection, connection.makefile("rb") as answers:
        found = []
        for command in commands:
            connection.sendall(encode(*command))
            line = answers.readline()
            if not line:
                raise ConnectionError("the server closed the connection")
            found.append(line.decode(errors="replace").strip())
        return found


def problem_at(address: str, port: int, username: str, password: str) -> str | None:
    """Return what is wrong with the server at `address`, or None."""
    where = f"{address} port {port}"
    try:
        (anonymous,) = ask(address, port, ("PING",))
        authenticated, pong = ask(address, port, ("AUTH", username, password), ("PING",))
    except OSError as error:
        return f"no answer at {where}: {error}"
    if not anonymous.startswith("-NOAUTH"):
        return f"{where} answers without a password: {anonymous}"
    if authenticated != "+OK":
        return f"{where} refuses user {username}: {authenticated}"
    return None if pong == "+PONG" else f"{where} answers PING with {pong}"


def main() -> None:
    """Ask until every address is good or the time is over."""
    module = AnsibleModule(
        argument_spec={
            "addresses": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "default": 6379},
            "username": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    deadline = time.monotonic() + params["timeout"]
    while True:
        found = [
            problem_at(address, params["port"], params["username"], params["password"])
            for address in params["addresses"]
        ]
        problems = [problem for problem in found if problem]
        if not problems or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    module.exit_json(changed=False, problems=problems)


if __name__ == "__main__":
    main()
