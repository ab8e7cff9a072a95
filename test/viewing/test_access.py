"""Who may use the viewer, and what it refuses to start with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import viewer
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
    with pytest.raises(InputError, match="other machines could reach the viewer without a password"):
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


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EMPHYSEMA_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean_environment")
def test_the_viewer_does_not_start_open_to_others() -> None:
    command = [sys.executable, str(ROOT / "viewer.py"), "--address", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("--address 0.0.0.0: other machines could reach the viewer")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("clean_environment")
def test_options_that_the_viewer_cannot_start_with_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.setattr(viewer, "serve", lambda *_: pytest.fail("it started"))
    for arguments, environment, message in (
        ([], {"EMPHYSEMA_VIEWER_ADDRESS": "0.0.0.0"}, "--address 0.0.0.0: other machines could reach the viewer"),
        (["--password-file", str(tmp_path / "absent")], {}, "absent: cannot be read"),
        (["--password-file", str(tmp_path / "empty")], {}, "password: 0 characters; expected at least 8"),
        (["--output", str(tmp_path / "none")], {}, "none: no such folder"),
    ):
        with monkeypatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            assert viewer.main(arguments) == 2, arguments
        out, error = capsys.readouterr()
        assert out == ""
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("port", ["0", "65536", "99999999", "-1"])
def test_a_port_that_does_not_exist_is_refused_in_one_line(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(viewer, "serve", lambda *_: pytest.fail("it started"))
    with pytest.raises(SystemExit) as caught:
        viewer.main(["--port", port])
    assert caught.value.code == 2
    error = f"viewer.py: argument --port: '{port}': expected a whole number from 1 to 65535; see --help\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize("option", ["--weights", "--bundle"])
def test_the_weights_have_the_name_that_process_py_gives_them_and_their_earlier_one(option: str, tmp_path: Path) -> None:
    assert viewer.build_parser().parse_args([option, str(tmp_path)]).weights == tmp_path


@pytest.mark.usefixtures("clean_environment")
def test_the_password_file_is_read_once_and_without_the_mark_that_editors_put_first(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"\xef\xbb\xbf" + f"{PASSWORD}\r\nnotes\n".encode())
    options = viewer.build_parser().parse_args(["--password-file", str(file)])
    assert viewer.access_of(options).admits(PASSWORD)
    file.unlink()
    assert viewer.access_of(options).admits(PASSWORD), "as the page asks for it at each view"
