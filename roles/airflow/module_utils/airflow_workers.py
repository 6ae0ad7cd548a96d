"""Ask Celery workers over the broker, without Airflow's imports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


class BrokerFailed(Exception):
    """The broker does not answer; the text holds no credentials."""


def without_credentials(error: Exception) -> str:
    """Return an error's type and text, without what stands before the ``@`` of a URL."""
    return _URL_CREDENTIALS.sub("", f"{type(error).__name__}: {error}")


def active_queues(broker_url: str, workers: Sequence[str] = (), *, seconds: float = 2) -> dict[str, Any]:
    """Ask which queues each worker consumes: node (``celery@worker-1``) -> queues, or an error in their place.

    With ``workers`` the answer is there as soon as the last of them has answered; a worker that does not is missing.
    Raises BrokerFailed.
    """
    from celery import Celery

    app = Celery("airflow_workers", broker=broker_url, set_as_current=False)
    limits = {"socket_connect_timeout": 3, "socket_timeout": 5, "retry_on_timeout": False}
    app.conf.update(broker_transport_options=limits, broker_connection_retry=False)
    names = [f"celery@{worker}" for worker in workers]
    try:
        inspect = app.control.inspect(destination=names or None, limit=len(names) or None, timeout=seconds)
        return inspect.active_queues() or {}
    except Exception as error:  # the broker's client library has a zoo of them
        raise BrokerFailed(without_credentials(error)) from None
    finally:
        app.close()


def consumed(replies: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the queues by worker.

    A worker may answer and yet consume nothing after a restart of Redis (apache/airflow#63580), so an answer alone
    proves nothing.
    """
    return {
        # An error comes as a dictionary where the list of queues should be.
        node.partition("@")[2]: {queue["name"] for queue in active} if isinstance(active, list) else set[str]()
        for node, active in replies.items()
    }
