"""``vse-scale bench``: measure this project and its peers on the same work, in turns.

A stage is a module with a function ``measure(job)``, which yields the rows of a case as soon as
they are measured, and an entry in `vse_scale.bench.stages.STAGES`. Its implementations are
generator functions that do the same work on every ``next``;
`vse_scale.bench.comparison.take_turns` runs each in a process of its own.
"""
