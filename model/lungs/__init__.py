"""Lungs: anatomy, segmentation, regions, densitometry, the plausibility of masks, and image quality."""
