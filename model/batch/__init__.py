"""Scoring many scans: which they are, the journal and tables of what was scored, shards, and the run with Ray."""
