"""What stands in a plan."""

THEOREM = "theorem"
UNIT_BALL = "unit ball"
LINF_BALL = "linf ball"
TEST_IMAGES = "test images"

PLAN_KEYS = {
    "title": "heading of the report",
    "seed": "of all random keys, below 2^32 (0)",
    "delta": "the claims are P(gap <= eps) >= 1 - delta (0.05)",
    "confidence": "of each limit, and of the verdicts together (0.99)",
    "trials": "pairs in every simulation (1000)",
    "until_decided": "true: a simulation ends once its claims are decided; trials are its budget",
    "correction": "for the number of claims: holm, no verdict is wrong; or, with until_decided, "
    "e-bh, few of the verdicts are wrong: a share of 1 - confidence in the mean (holm)",
    "stream": "of random bits: threefry-20, jax.random's, or threefry-13, faster (threefry-20)",
    "runs": "for how many seeds the plan is; they share 1 - confidence (1)",
    "experiment": "tables, one for every combination of the lists in it, with the keys below",
}
EXPERIMENT_KEYS = {
    "title": "heading in the table",
    "network": "dense or convolutional",
    "widths": "dense: widths, input to output; a list, or a list of lists, one a network",
    "channels": "convolutional: channels, input to last convolution; likewise",
    "size": "convolutional: side of the input image",
    "kernel": "convolutional: side of the kernels (3)",
    "strides": "convolutional: one number, or one a convolution (1)",
    "padding": "convolutional: SAME, VALID or CIRCULAR (SAME)",
    "outputs": "convolutional: width of a dense read-out (none)",
    "activation": "relu, leaky_relu, tanh, erf or identity (relu)",
    "slope": "leaky_relu: slope below 0, from 0 to 1 (0.01)",
    "law": "uniform or normal weights",
    "scaling": "max (the paper's), he, glorot or lecun (max)",
    "gain": "factor on the weights, the paper's K under max (1)",
    "data": "digits: targets are trained on them instead of sampled from a law",
    "training": "data: a table of steps, batch, learning_rate, weight_decay",
    "pruning": "magnitude, random or bernoulli; one or a list",
    "alpha": "amounts: floor(D^(1 - alpha)) of each pruned layer's D weights; one or a list",
    "sparsity": "amounts: this fraction of each pruned layer; joins alpha and count if given",
    "count": "amounts: this many weights of each pruned layer",
    "layers": "middle, all, or a list of names such as dense2 (middle)",
    "domain": f"{UNIT_BALL}, {LINF_BALL}, or {TEST_IMAGES} with data; one or a list ({UNIT_BALL})",
    "radius": f"{LINF_BALL}: of each feature (1)",
    "output": f"{LINF_BALL}: norm of the outputs, linf, l1 or l2 (linf)",
    "samples": "balls: random inputs a trial (64)",
    "starts": "balls: the best inputs, which start an ascent (8)",
    "steps": "balls: steps of the ascent at most (unit ball 40, linf ball 10)",
    "trials": "independent pairs; with data, that many trained networks (the plan's)",
    "eps": f'numbers, or "{THEOREM}" for the certified one; one or a list',
}
