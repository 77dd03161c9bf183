"""The layouts in which image-text data lies around, each as a stream of rows."""

from vse_shards.sources.base import Caption, Problem, RegionsAt, Row, Source, Where

__all__ = ["Caption", "Problem", "RegionsAt", "Row", "Source", "Where"]
