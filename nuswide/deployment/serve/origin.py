"""Where a request says that it comes from, and where it says that it goes.

Owns the defence against web pages elsewhere: by DNS rebinding a page makes a name of its own lead
to this machine, but the browser still sends that name as Host.

    check_host("127.0.0.1:5001", frozenset({"localhost"}))
"""

import ipaddress
from urllib.parse import urlsplit

from nuswide.deployment.serve.errors import Refusal


def check_host(host: str, names: frozenset[str]) -> None:
    """Raise Refusal 421 unless the host is an address or one of the names, with or without port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name.rstrip(".") not in names and not _is_address(name):
        raise Refusal(421, "this server does not go by that name; --allowed_hosts lists its names")


def check_origin(headers: dict[str, str]) -> None:
    """Raise Refusal 403 if a browser says that a page of another site asks."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers["host"].lower():
        raise Refusal(403, "a page of another site may not ask")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
