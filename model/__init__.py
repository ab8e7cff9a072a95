"""Emphysema subtyping on chest CT: a scan in, Fleischner scores, percentages and activation maps out.

Research software, not a medical device.
"""

__version__ = "0.1.0"

DISCLAIMER = "Research software, not a medical device."
