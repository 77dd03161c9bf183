"""Layouts of image-text data, each read as a stream of rows."""

from vse_shards.sources.base import Caption, Location, Problem, RegionsAt, Row, Source

__all__ = ["Caption", "Location", "Problem", "RegionsAt", "Row", "Source"]
