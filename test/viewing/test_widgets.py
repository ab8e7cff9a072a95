"""What the tabs share."""

from __future__ import annotations

from model.viewing.widgets import as_text


def test_a_users_text_is_shown_letter_by_letter() -> None:
    assert as_text("_scan_.mha") == "\\_scan\\_\\.mha"
    assert as_text("*a* 1") == "\\*a\\* 1"
