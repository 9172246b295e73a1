"""Error responses: status codes and their names in MLflow's error format.

A message never contains the client's input.
"""

import json

_ERROR_CODES = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ENDPOINT_NOT_FOUND",
    405: "BAD_REQUEST",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_LIMIT_EXCEEDED",
    415: "BAD_REQUEST",
    421: "PERMISSION_DENIED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}


class HTTPError(Exception):
    """A request that fails with a status. headers: in addition to those of every response."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def body(self) -> bytes:
        """The response's body, in MLflow's error format."""
        error_code = _ERROR_CODES[self.status]
        return json.dumps({"error_code": error_code, "message": self.message}).encode()


class ClientDisconnect(Exception):
    """The client has closed the connection."""
