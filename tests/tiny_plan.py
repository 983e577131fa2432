"""The smallest plan that a whole command runs."""

TINY = """
title = "tiny"
trials = 5
[[experiment]]
title = "one"
network = "dense"
widths = [3, 4, 4, 2]
law = "uniform"
pruning = "random"
alpha = 0.5
samples = 2
starts = 1
steps = 1
eps = 0.5
"""
