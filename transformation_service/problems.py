"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A refusal that the client sees as ``application/problem+json``.

    Args:
        status: HTTP status code.
        code: Short stable name of the problem; becomes the ``type`` URN.
        detail: What is wrong with this request and what to do about it.
        headers: Extra response headers.
        extra: Further members of the document, e.g. the known names.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **extra: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers
        self.extra = extra

    def response(self) -> JSONResponse:
        """Return the problem as an HTTP response."""
        document = {
            "type": f"urn:transformation-service:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }
        return JSONResponse(document, self.status, headers=self.headers, media_type=MEDIA_TYPE)


def database_unavailable() -> Problem:
    """Return the answer for every request that needs the database while it is away."""
    return Problem(
        503,
        "database-unavailable",
        "The service can't reach its database. Nothing was accepted; send the same request again.",
        headers={"Retry-After": "5"},
    )
