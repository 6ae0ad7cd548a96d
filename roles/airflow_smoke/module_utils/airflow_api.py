"""A client of Airflow's REST API, for modules."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any


class ApiFailed(Exception):
    """The API gave no usable answer; the text says which and why.

    `final`: it will not get better by waiting.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Api:
    """Airflow's REST API for one user. Every trouble is a ApiFailed with the path in it."""

    def __init__(self, url: str, *, ca_file: str | None = None, timeout: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._headers = {"Accept": "application/json", "Content-Type": "application/json"}
        # Straight to the server: a proxy of the host's environment has no business between the two.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file or None)))
        self._opener = urllib.request.build_opener(*handlers)

    def login(self, user: str, password: str) -> None:
        """Take a token for all later calls."""
        answer = self.call("POST", "/auth/token", {"username": user, "password": password})
        self._headers["Authorization"] = f"Bearer {answer['access_token']}"

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """Return the JSON of `/api/v2<path>`."""
        return self.call("GET", f"/api/v2{path}" + (f"?{urllib.parse.urlencode(query)}" if query else ""))

    def every(self, path: str, key: str, **query: object) -> Iterator[Any]:
        """Yield the items of all pages of a collection."""
        offset = 0
        while True:
            page = self.get(path, limit=100, offset=offset, **query)
            yield from page[key]
            offset += len(page[key])
            if not page[key] or offset >= page["total_entries"]:
                return

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send one request and return the JSON object of its answer."""
        request = urllib.request.Request(  # noqa: S310 - http(s) URL of the deployment
            self.url + path,
            method=method,
            headers=self._headers,
            data=None if body is None else json.dumps(body).encode(),
        )
        name = f"{method} {path.partition('?')[0]}"
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            with error:
                detail = _detail(error.read(2000))
            raise ApiFailed(f"{name}: HTTP {error.code}{detail}", final=error.code in (400, 401, 403)) from None
        except urllib.error.URLError as error:
            raise ApiFailed(f"{name} at {self.url}: {error.reason}") from None
        except (OSError, ValueError) as error:  # time limit while reading; no JSON
            raise ApiFailed(f"{name} at {self.url}: {type(error).__name__}: {error}") from None


def _detail(body: bytes) -> str:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f", {detail if isinstance(detail, str) else json.dumps(detail)}"[:300]
