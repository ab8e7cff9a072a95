"""Who may use the viewer, and what it refuses to start with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import InputError
from model.viewing.access import Access, is_loopback
from test.conftest import ROOT

PASSWORD = "correct horse"
HERE = {"Host": "127.0.0.1:8501"}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_alone_needs_no_password(address: str) -> None:
    assert is_loopback(address)
    Access().check_address(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "192.168.1.4", "example.org"])
def test_any_other_address_needs_a_password_or_a_proxy(address: str) -> None:
    with pytest.raises(InputError, match="nobody would ask them who they are"):
        Access().check_address(address)
    Access(password=PASSWORD).check_address(address)
    Access(behind_proxy=True).check_address(address)
    with pytest.raises(InputError, match="password: 6 characters; expected at least 8"):
        Access(password="secret").check_address(address)


@pytest.mark.parametrize("host", ["127.0.0.1:8501", "localhost:8501", "[::1]:8501", "localhost"])
def test_requests_from_this_machine_are_served(host: str) -> None:
    assert not Access().refuses({"Host": host})


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "1234.ngrok.app"},
        HERE | {"X-Forwarded-For": "203.0.113.7"},
        HERE | {"Forwarded": "for=203.0.113.7"},
        HERE | {"x-real-ip": "203.0.113.7"},
        {"Host": "evil.example:8501"},  # a name that somebody else made point to 127.0.0.1
        {},
    ],
)
def test_requests_through_a_tunnel_or_by_another_name_are_refused_unless_somebody_asks_for_a_password(
    headers: dict[str, str],
) -> None:
    assert Access().refuses(headers)
    assert not Access(password=PASSWORD).refuses(headers)
    assert not Access(behind_proxy=True).refuses(headers)


def test_only_the_password_admits() -> None:
    access = Access(password=PASSWORD)
    assert access.admits(PASSWORD)
    assert not any(access.admits(other) for other in ("", "correct hors", "correct horse ", "Correct horse", "pässwort"))
    assert not Access().admits("")


def viewer(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EMPHYSEMA_")}
    command = [sys.executable, ROOT / "viewer.py", *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_viewer_does_not_start_open_to_others(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for arguments, environment, message in (
        (["--address", "0.0.0.0"], {}, "--address 0.0.0.0: other machines could reach the viewer"),
        ([], {"EMPHYSEMA_VIEWER_ADDRESS": "0.0.0.0"}, "--address 0.0.0.0: other machines could reach the viewer"),
        (["--password-file", str(tmp_path / "absent")], {}, "absent: cannot be read"),
        (["--password-file", str(tmp_path / "empty")], {}, "password: 0 characters; expected at least 8"),
        (["--output", str(tmp_path / "none")], {}, "none: no such folder"),
    ):
        done = viewer(*arguments, **environment)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
