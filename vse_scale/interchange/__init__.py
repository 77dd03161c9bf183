"""Models that come and go: our own folder format and others."""
