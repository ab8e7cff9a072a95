#!/usr/bin/env python3
"""Entry point for cohorts: scores many chest CTs on this machine or on a Ray cluster, and writes tables of all of them.

    python cohort.py --input TREE --output OUTPUT
    python cohort.py --input list.csv --output OUTPUT --shard 3/16
    python cohort.py --output OUTPUT --merge

Research software, not a medical device.
"""

from __future__ import annotations

from model.batch.command import main, run_command

__all__ = ["main"]

if __name__ == "__main__":
    run_command()
