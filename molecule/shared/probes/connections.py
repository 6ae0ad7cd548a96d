"""Try TCP connections from this host, all at once."""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def main(data: dict[str, Any]) -> list[str]:
    """Take ``targets`` ([address, port] each) and ``seconds``; return ``open``, ``refused`` or ``dropped`` for each."""

    def attempt(target: list[Any]) -> str:
        try:
            socket.create_connection((target[0], target[1]), timeout=data["seconds"]).close()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "dropped"
        except OSError as error:
            return str(error)
        return "open"

    with ThreadPoolExecutor(64) as pool:
        return list(pool.map(attempt, data["targets"]))
