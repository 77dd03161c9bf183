"""``vse-scale bench``: this project and its peers on the same work, in turns, in one run.

A stage is a module with a function ``measure(job)``, which yields the `Row` s of a case as soon as
they are measured, and a line in `vse_scale.bench.stages.STAGES`. Its contenders are generator
functions that do the same work on every ``next``; `vse_scale.bench.comparison.take_turns` runs each
in a process of its own.
"""
