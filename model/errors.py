"""The one error that a user can do something about: an input that cannot be used."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

logger = logging.getLogger(__name__)


class InputError(Exception):
    """A file, folder or option that cannot be used; its text is one line that names it, what is wrong, and what was expected.

    Args:
        source: the file, folder or option.
        found: what is wrong with it.
        expected: what would have worked.
    """

    def __init__(self, source: Path | str, found: str, expected: str) -> None:
        found, expected = (" ".join(text.split()) for text in (found, expected))
        self.found, self.expected = found, expected  # for whoever knows the file and raises anew
        self.source = source
        super().__init__(printable(f"{source}: {found}; expected {expected}"))

    def __reduce__(self) -> tuple[type[InputError], tuple[Path | str, str, str]]:
        """For another process: the one argument that exceptions are pickled with would not do."""
        return type(self), (self.source, self.found, self.expected)


def reason(error: Exception) -> str:
    """Why something failed, in words that do not name the file: the text of an OSError does."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)  # pyarrow's `strerror` names the file, too
    return str(error) or type(error).__name__


def check_name(path: Path) -> None:
    """Check that a file's name is UTF-8: a library that gets another one may crash.

    Raises:
        InputError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(path, "the name is not valid UTF-8", "a name in UTF-8") from None


def printable(text: str) -> str:
    r"""Escape what file names may hold and lines must not: line breaks (as `\n`), control characters, what is no UTF-8."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def encodable(text: str) -> str:
    r"""Escape what UTF-8 cannot encode: bytes of a file name that is not UTF-8 (as `\udce9`)."""
    return text.encode(errors="backslashreplace").decode()


def unexpected(error: Exception) -> str:
    """Log where an error of ours came from, and return it as one line."""
    logger.info("%s", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
