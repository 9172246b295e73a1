"""Checks of the Host and Origin headers, against web pages of other sites.

By DNS rebinding, a page can make its own host name resolve to this machine, but the browser still
sends that name as Host.
"""

import ipaddress
from urllib.parse import urlsplit

from nuswide.deployment.serve.errors import HTTPError


def check_host(host: str, names: frozenset[str]) -> None:
    """Raise HTTPError 421 unless the host, less its port, is an IP address or one of the names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name.rstrip(".") not in names and not _is_address(name):
        raise HTTPError(421, "unknown host name; --allowed_hosts lists the names of this server")


def check_origin(headers: dict[str, str]) -> None:
    """Raise HTTPError 403 if a browser sends the request for a page of another site."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers["host"].lower():
        raise HTTPError(403, "requests from pages of other sites are not allowed")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
