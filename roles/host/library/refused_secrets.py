#!/usr/bin/python
"""Use secrets of before, and see that they are refused while those of now are not."""

from __future__ import annotations

DOCUMENTATION = r"""
module: refused_secrets
short_description: Prove that former secrets are refused
description:
  - Uses each former secret as a client would, from this host, until it is refused or O(seconds) are over. The present
    one has to be accepted in the same way, or the refusal proves nothing.
  - Needs psycopg2 or psycopg for C(postgresql), redis for C(redis), PyJWT for C(jwt) and C(log), so it runs with the
    Python of a venv.
options:
  attempts:
    description: What to try.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: How to call it., required: true}
      kind:
        description:
          - "C(postgresql), C(redis): the secrets are URLs with a password. C(bearer): a token of a service at
            O(attempts[].url), 401 without it."
          - "C(jwt): the key that signs the tokens of Airflow's API at O(attempts[].url), which O(attempts[].user) may
            log in to. C(log): the key that signs requests to the log server of a worker there."
        choices: [postgresql, redis, bearer, jwt, log]
        required: true
      former: {description: What has to be refused., required: true}
      present: {description: What has to be accepted., required: true}
      url: {description: Where to try an HTTP kind.}
      user: {description: For C(jwt).}
      password: {description: The user's., type: str}
  since: {description: When the secrets changed in seconds since the epoch., type: float, required: true}
  seconds: {description: How long a former secret may still be accepted., type: float, default: 60}
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: See that the old password is refused
  refused_secrets:
    attempts: [{name: broker, kind: redis, former: "{{ old_url }}", present: "{{ new_url }}"}]
    since: "{{ changed_at }}"
"""
RETURN = r"""
table: {description: A line for each attempt., type: list, returned: success}
slowest: {description: Seconds from the change to the last refusal., type: float, returned: success}
"""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

PAUSE_SECONDS = 0.5


def status_of(url: str, authorization: str) -> int:
    """Return the status of a GET with this Authorization header. Raises OSError without an answer."""
    request = urllib.request.Request(url, headers={"Authorization": authorization})  # noqa: S310 - the inventory's
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def accepts_postgresql(secret: str, attempt: Mapping[str, Any]) -> bool:
    """Log in. Raises OSError when something else than the password is wrong."""
    url = re.sub(r"^(db\+)?postgresql(\+\w+)?://", "postgresql://", secret)
    connect: Callable[..., Any]
    try:
        from psycopg2 import OperationalError, connect
    except ImportError:
        from psycopg import OperationalError, connect  # type: ignore[assignment]
    try:
        connect(url, connect_timeout=5).close()
        return True
    except OperationalError as error:
        if "password authentication failed" in str(error):
            return False
        raise OSError(" ".join(str(error).split())) from None


def accepts_redis(secret: str, attempt: Mapping[str, Any]) -> bool:
    """Log in and ping."""
    import redis

    client = redis.Redis.from_url(secret, socket_connect_timeout=5, socket_timeout=5)
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return False
    except redis.RedisError as error:
        raise OSError(type(error).__name__) from None
    finally:
        client.close()


def accepts_bearer(secret: str, attempt: Mapping[str, Any]) -> bool:
    """Send the token."""
    return status_of(attempt["url"], f"Bearer {secret}") not in (401, 403)


def accepts_jwt(secret: str, attempt: Mapping[str, Any]) -> bool:
    """Sign the claims of a real token with the key, and use that."""
    import jwt

    body = json.dumps({"username": attempt["user"], "password": attempt["password"]}).encode()
    request = urllib.request.Request(  # noqa: S310 - the inventory's
        f"{attempt['url']}/auth/token", data=body, headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        token = json.load(answer)["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    header = jwt.get_unverified_header(token)
    forged = jwt.encode(claims, secret, algorithm="HS512", headers=header)
    return status_of(f"{attempt['url']}/api/v2/dags?limit=1", f"Bearer {forged}") not in (401, 403)


def accepts_log(secret: str, attempt: Mapping[str, Any]) -> bool:
    """Ask a log server for a file that is not there: 404 with a good signature, 403 with another."""
    import jwt

    now = int(time.time())
    claims = {"filename": "none.log", "aud": "task-instance-logs", "iat": now, "nbf": now, "exp": now + 60}
    token = jwt.encode(claims, secret, algorithm="HS512")
    return status_of(f"{attempt['url']}/log/none.log", token) != 403


KINDS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "postgresql": accepts_postgresql,
    "redis": accepts_redis,
    "bearer": accepts_bearer,
    "jwt": accepts_jwt,
    "log": accepts_log,
}


def judge(attempt: Mapping[str, Any], deadline: float) -> tuple[float, str]:
    """Wait until the former secret is refused and the present one is accepted.

    Returns the instant of the refusal and what is wrong, or "".
    """
    accepts = KINDS[attempt["kind"]]
    while True:
        at = time.time()
        try:
            if accepts(attempt["former"], attempt):
                wrong = "the former secret is still accepted"
            elif not accepts(attempt["present"], attempt):
                wrong = "the present secret is refused as well"
            else:
                return at, ""
        except OSError as error:
            wrong = f"no answer that tells: {error}"
        if time.time() > deadline:
            return at, wrong
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "attempts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"required": True},
                    "kind": {"required": True, "choices": list(KINDS)},
                    "former": {"required": True, "no_log": True},
                    "present": {"required": True, "no_log": True},
                    "url": {},
                    "user": {},
                    "password": {"no_log": True},
                },
            },
            "since": {"type": "float", "required": True},
            "seconds": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    since, attempts = module.params["since"], module.params["attempts"]
    table, wrong, slowest = [], [], 0.0
    # An API that has just started may need longer to answer than it may accept the old key.
    deadline = time.time() + module.params["seconds"]
    for attempt in attempts:
        at, problem = judge(attempt, deadline)
        slowest = max(slowest, at - since)
        if problem:
            wrong.append(f"{attempt['name']}: {problem}")
        table.append(
            f"{attempt['name']}: the former secret is refused, {at - since:.1f} s after the change at the latest"
        )
    if wrong:
        module.fail_json(msg="Not all former secrets are proven to be refused:\n" + "\n".join(wrong))
    module.exit_json(changed=False, table=table, slowest=round(slowest, 1))


if __name__ == "__main__":
    main()
