#!/usr/bin/env python3
"""Entry point of the viewer: a page in the browser for CT scans with their activation maps, and for single slices.

`python viewer.py` starts Streamlit, which runs this file again, once for each view of the page.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import get_args

from model import DISCLAIMER, SHIPPED_WEIGHTS
from model.command_line import DeviceName, InferencePrecisionName, OneLineParser, whole_number
from model.container.grand_challenge import MODEL_FOLDER, bundle_places
from model.errors import InputError
from model.viewing.access import Access, password_in

ENVIRONMENT_PREFIX = "EMPHYSEMA_VIEWER_"
LARGEST_UPLOAD_MB = 4096
# A simulated case that a button on the page scores; the button is missing where the case is. No docstring here: Streamlit,
# which runs this file, would show it on the page.
EXAMPLE = Path(__file__).resolve().parent / "test" / "input"


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="viewer.py",
        description=f"A page for CT scans with their activation maps, and for single slices. {DISCLAIMER}",
        epilog=f"The password can be given in the environment variable {ENVIRONMENT_PREFIX}PASSWORD, too.",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get(f"{ENVIRONMENT_PREFIX}ADDRESS", "127.0.0.1"),
        help="to listen on; any other than this machine's own needs a password (default: %(default)s)",
    )
    parser.add_argument("--port", type=whole_number(1, 65535), default=8501, help="default: %(default)s")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="ask for the password in its first line")
    parser.add_argument("--behind-proxy", action="store_true", help="a reverse proxy of yours asks for a password already")
    parser.add_argument(
        "--weights", "--bundle", type=Path, help=f"weight bundle; default: {MODEL_FOLDER}, else the included one"
    )
    parser.add_argument(
        "--slices-bundle",
        type=Path,
        default=SHIPPED_WEIGHTS / "slices",
        help="of the slice network; default: the included one",
    )
    parser.add_argument("--input", type=Path, help="a folder that process.py scored, for the CT of a finished output")
    parser.add_argument("--output", type=Path, help="what process.py wrote for it, to be opened on the page")
    parser.add_argument("--lungmask-weights", type=Path, help="segment with the lungmask network, using these weights")
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto")
    parser.add_argument("--precision", choices=get_args(InferencePrecisionName), default="auto")
    return parser


def access_of(options: argparse.Namespace) -> Access:
    """How the viewer is guarded.

    Raises:
        InputError: the password file cannot be read or is empty, or the guard does not suffice for the address.
    """
    password = os.environ.get(f"{ENVIRONMENT_PREFIX}PASSWORD") or None
    if options.password_file is not None:
        password = password_in(options.password_file)
    access = Access(password, options.behind_proxy)
    access.check_address(options.address)
    return access


def run_page() -> None:
    """Draw the page: what Streamlit runs."""
    from model.viewing.page import PageOptions, show

    options = build_parser().parse_args(sys.argv[1:])
    show(
        PageOptions(
            bundle=bundle_places(options.weights),
            slices_bundle=options.slices_bundle,
            example=EXAMPLE,
            input=options.input,
            output=options.output,
            lungmask_weights=options.lungmask_weights,
            device=options.device,
            precision=options.precision,
            access=access_of(options),
        )
    )


def serve(options: argparse.Namespace, arguments: list[str]) -> int:
    """Start Streamlit on this file; returns when it is stopped."""
    from streamlit.web import cli

    settings = {
        "server.address": options.address,
        "server.port": options.port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": LARGEST_UPLOAD_MB,
        "server.enableXsrfProtection": "true",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",  # an error's text may quote an upload
        "client.toolbarMode": "minimal",
        "logger.level": "warning",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return int(cli.main(["run", str(Path(__file__).resolve()), *flags, "--", *arguments], standalone_mode=False) or 0)


def main(arguments: list[str] | None = None) -> int:
    """Check the options, then serve; returns the exit code: 0, or 2 for an option that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    try:
        access_of(options)
        for folder in (options.input, options.output):
            if folder is not None and not folder.is_dir():
                raise InputError(folder, "no such folder", "a folder")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    logging.captureWarnings(True)
    return serve(options, arguments)


if __name__ == "__main__":
    from streamlit import runtime

    if runtime.exists():
        run_page()
    else:
        sys.exit(main())
