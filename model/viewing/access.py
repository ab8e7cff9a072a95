"""Who may use the viewer: this machine alone, unless there is a password, or a reverse proxy that asks for one.

The address that is listened on does not tell who can come: a tunnel such as ngrok brings the world to the loopback address.
So each request is looked at, too.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, reason

FORWARDING_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""What proxies and tunnels add to requests."""

SHORTEST_PASSWORD = 8


@dataclass(frozen=True)
class Access:
    """How the viewer is guarded.

    Attributes:
        password: asked of everybody; None where none is.
        behind_proxy: whether a reverse proxy asks instead.
    """

    password: str | None = None
    behind_proxy: bool = False

    def check_address(self, address: str) -> None:
        """Check that this is enough to listen on an address.

        Raises:
            InputError: other machines could reach the viewer without a password, or the password is too short.
        """
        if self.password is not None and len(self.password) < SHORTEST_PASSWORD:
            raise InputError("password", f"{len(self.password)} characters", f"at least {SHORTEST_PASSWORD}")
        if not is_loopback(address) and self.password is None and not self.behind_proxy:
            raise InputError(
                f"--address {address}",
                "other machines could reach the viewer without a password",
                "127.0.0.1, or --password-file, or --behind-proxy if a reverse proxy of yours asks for a password",
            )

    def refuses(self, headers: Mapping[str, str]) -> bool:
        """Whether nobody asks for a password, and a request came from elsewhere: by another host name, or through a tunnel."""
        if self.password is not None or self.behind_proxy:
            return False
        given = {name.lower(): value for name, value in headers.items()}
        return any(name in given for name in FORWARDING_HEADERS) or not is_loopback(_host_name(given.get("host", "")))

    def admits(self, password: str) -> bool:
        """Whether it is the password, found out in a time that tells nothing."""
        return self.password is not None and hmac.compare_digest(password.encode(), self.password.encode())


@functools.cache
def password_in(file: Path) -> str:
    """The first line of a password file, read once for all views of the page: it may be a pipe, or be removed.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(file, f"cannot be read ({reason(error)})", "a text file with a password") from error


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """The Host header without its port: `127.0.0.1:8501`, `[::1]:8501`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
