"""Many scans: manifests, visual references, where a case's truth lies."""
