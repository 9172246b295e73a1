"""What a caller is told when it is told no.

Owns the statuses and their names in MLflow's form of an error. A message never repeats the input.

    raise Refusal(413, "the body is larger than 16 MiB")
"""

import json

_NAMES = {
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


class Refusal(Exception):
    """An answer that is no result. headers: beside those of every answer."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def body(self) -> bytes:
        """MLflow's form of an error."""
        return json.dumps({"error_code": _NAMES[self.status], "message": self.message}).encode()


class Gone(Exception):
    """The caller has closed the connection."""
