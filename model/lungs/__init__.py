"""Lungs: anatomy, segmentation, regions, densitometry, and the plausibility of masks."""
