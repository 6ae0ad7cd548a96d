"""Send commands to Redis with the library that Celery uses here."""

from typing import Any

import redis


def main(data: dict[str, Any]) -> list[Any]:
    """Take ``host``, ``login`` (username, password) and ``commands``; return answers, or ``{"error": text}``."""
    answers: list[Any] = []
    for command in data["commands"]:
        # A connection for each: one refused login must not hide the next answer.
        client: Any = redis.Redis(host=data["host"], socket_timeout=5, decode_responses=True, **data["login"])
        try:
            answer = client.execute_command(*command)
            answers.append(list(answer) if isinstance(answer, (list, set, tuple)) else answer)
        except redis.RedisError as error:
            answers.append({"error": f"{type(error).__name__}: {error}"})
        finally:
            client.close()
    return answers
