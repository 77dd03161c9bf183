"""HTML documents and charts that need no network."""
