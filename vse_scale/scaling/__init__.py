"""``vse-scale plan``: what a run takes on N ranks, on paper."""
