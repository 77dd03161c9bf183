"""The HTML report of a run."""

from vse_scale.report.data import PoolingCurve
from vse_scale.report.examples import Example, illustrate, pick_examples
from vse_scale.report.page import build_report

__all__ = ["Example", "PoolingCurve", "build_report", "illustrate", "pick_examples"]
