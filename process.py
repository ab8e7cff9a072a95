#!/usr/bin/env python3
"""Entry point of inference: reads a chest CT and its lung mask, writes Fleischner scores and activation maps.

On grand-challenge it runs without arguments, from /input to /output. Research software, not a medical device.
"""

from __future__ import annotations

from model.container.command import main, run_command

__all__ = ["main"]

if __name__ == "__main__":
    run_command()
