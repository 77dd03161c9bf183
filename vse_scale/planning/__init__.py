"""``vse-scale doctor`` and ``vse-scale plan``: checks and estimates before a run."""
