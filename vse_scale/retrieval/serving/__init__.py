"""A search server over an index: a page, an API with OpenAPI, and metrics for Prometheus."""
