#!/usr/bin/python
"""Empty Celery's queues on the broker, while no worker runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_queues
short_description: Remove all messages from Celery's queues
description:
  - For a platform whose scheduler and workers stand still, and whose queued tasks were handed back to the scheduler
    (M(airflow_database)). Runs with the Python of Airflow's venv.
options:
  broker_urls:
    description: Addresses of the broker; the first whose password is accepted counts.
    type: list
    elements: str
    required: true
  queues: {description: Names of the queues., type: list, elements: str, required: true}
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: Remove the messages
  airflow_queues:
    broker_urls: ["{{ broker_url }}"]
    queues: [default]
"""
RETURN = r"""
messages: {description: Number of messages that were there., type: int, returned: always}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

# kombu appends these to a queue's name for messages of higher priority (kombu.transport.redis.Channel).
PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
# What workers had taken and not confirmed.
TAKEN = ("unacked", "unacked_index")


def connect(urls: list[str]) -> Any:
    """Return a client of the first broker that accepts its password. Raises redis.RedisError of the last."""
    import redis

    for url in urls:
        client = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=10)
        try:
            client.ping()
            return client
        except redis.AuthenticationError:
            client.close()
            if url == urls[-1]:
                raise
    raise ValueError("no address")


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "broker_urls": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "queues": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        client = connect(module.params["broker_urls"])
        keys = [name + suffix for name in module.params["queues"] for suffix in PRIORITIES]
        messages = sum(int(client.llen(key)) for key in keys)
        there = sum(int(client.exists(key)) for key in (*keys, *TAKEN))
        if there and not module.check_mode:
            client.delete(*keys, *TAKEN)
        client.close()
    except Exception as error:  # redis-py's; its texts hold host and user, never a password
        module.fail_json(msg=f"The broker does not answer as it should: {type(error).__name__}: {error}")
    module.exit_json(changed=there > 0, messages=messages)


if __name__ == "__main__":
    main()
