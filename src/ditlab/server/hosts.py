"""The hosts and origins of requests, so that pages of other sites cannot use the service through a browser.

A page of another site can send requests to localhost. It can also make its own name resolve to localhost (DNS
rebinding), so that the browser takes the service for a part of that site. The name is then in the Host header.
Addresses are always allowed, because nobody can make an address resolve to another one.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers

from ditlab.core.errors import InputError

HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\[\]]+?))\.?(?::[0-9]*)?", re.IGNORECASE)
PATTERN = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:]+", re.IGNORECASE)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Hosts:
    """The names of a service: host names, "*.example.com" for all names below one, or "*" for all names."""

    allowed: tuple[str, ...] = ("*",)
    """In the Host header of a request."""
    origins: tuple[str, ...] = ()
    """In the Origin header, besides the name in the Host header: a proxy can replace the latter."""

    def __post_init__(self) -> None:
        for name in (*self.allowed, *self.origins):
            if not PATTERN.fullmatch(name):
                raise InputError(
                    f'"{name}" is not the name of a host; give a name without scheme and port, such as example.com or '
                    "*.example.com, or * for all"
                )

    def rejection(self, headers: Headers, navigation: bool) -> str | None:
        """Why a request is rejected, in one line; None if it is not.

        Args:
            headers: of the request.
            navigation: whether links of other sites may lead to its path.
        """
        host = headers.get("host")
        if host is not None and not self._allows(host):  # browsers always send it
            return f"the service does not have the name {host[:200]}; add it to the allowed hosts at the start"
        linked = navigation and headers.get("sec-fetch-mode") == "navigate"
        if not linked and self._from_another_site(headers):
            return "requests from pages of other sites are not allowed; open the page of the service itself"
        return None

    def _allows(self, host: str) -> bool:
        name = host_name(host)
        return name is not None and (is_address(name) or matches(name, self.allowed))

    def _from_another_site(self, headers: Headers) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:  # set by the browser, which knows what proxies change
            return site not in ("same-origin", "none")
        if origin is None or "*" in self.origins:  # no page sent it, or each request must have a token
            return False
        address = origin.partition("://")[2]
        name = host_name(address)
        return address != headers.get("host") and (name is None or not matches(name, self.origins))


def hosts_of(address: str, machine: str, allowed: Collection[str], token: str) -> Hosts:
    """The names of a service.

    Args:
        address: address or name on which it listens.
        machine: name of the machine, under which other machines reach it.
        allowed: names that the operator gives; empty for the default.
        token: that every request must have; empty for none. Pages of other sites do not have it, so that no name must
            be rejected.

    Raises:
        InputError: an invalid name.
    """
    if allowed:
        return Hosts(("localhost", *(name.lower() for name in allowed)), tuple(name.lower() for name in allowed))
    if token:
        return Hosts(("*",), ("*",))
    if address in LOOPBACK:
        return Hosts(("localhost",))
    names = dict.fromkeys(name.lower() for name in (address, machine, machine.partition(".")[0]))
    return Hosts(("localhost", *(name for name in names if PATTERN.fullmatch(name) and not is_address(name))))


def host_name(host: str) -> str | None:
    """The name or address in a Host header, in lower case and without port; None if it is invalid."""
    match = HOST.fullmatch(host)
    return None if match is None else (match[1] or match[2]).lower()


def is_address(name: str) -> bool:
    """Whether it is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name is one of these names, or below one of them that starts with "*."."""
    return any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in patterns
    )
