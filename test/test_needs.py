"""What a test needs and the machine lacks: a reason to skip the test for a user, and a failure in CI."""

from __future__ import annotations

import re

import pytest

from test.conftest import REQUIRE_ALL, ROOT, need


def test_a_test_without_what_it_needs_is_skipped_and_fails_where_all_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRE_ALL, raising=False)
    need(True, "nothing")
    with pytest.raises(pytest.skip.Exception, match="needs a browser"):
        need(False, "a browser")
    monkeypatch.setenv(REQUIRE_ALL, "1")
    need(True, "nothing")
    with pytest.raises(pytest.fail.Exception, match="needs a browser"):
        need(False, "a browser")


def test_ci_requires_all_before_it_runs_the_tests() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    exported = next(number for number, line in enumerate(lines) if line.startswith(f"export {REQUIRE_ALL}=1"))
    assert exported < next(number for number, line in enumerate(lines) if line.startswith("./test.sh"))


def test_no_test_skips_in_another_way() -> None:
    """Those of the fuzz tests alone count what ran, which is no matter of the machine."""
    own = {"test/conftest.py", "test/test_needs.py", "test/trust/test_fuzz.py"}
    skips = re.compile(r"pytest\.(skip|importorskip|mark\.skip|mark\.xfail)")
    paths = [path for path in (ROOT / "test").rglob("*.py") if str(path.relative_to(ROOT)) not in own]
    assert len(paths) > 50
    assert [str(path) for path in paths if skips.search(path.read_text(encoding="utf-8"))] == []
