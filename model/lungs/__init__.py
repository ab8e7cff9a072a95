"""Measures of a masked lung: segmentation, regions, densitometry, plausibility."""
