"""The engine through its public functions, with the block that it chooses itself."""

import jax
import numpy as np

from jaxprune import engine, laws, networks
from jaxprune.gaps import UnitBall
from jaxprune.pruning import METHODS, Count, Fraction
from peers import GAIN, KERNEL, LAYERS, SAMPLES, SIDE, STARTS, STEPS, Candidate, Workload

WORKLOADS = ("sampled", "conv", "trial")


def device() -> str:
    """What it runs on."""
    device = jax.devices()[0]
    return device.device_kind if device.platform != "cpu" else "cpu"


def prepare(workload: Workload) -> Candidate:
    """Compiles the programs of a block."""
    trial = workload.kind == "trial"
    widths = [workload.width] * (LAYERS + 1)
    if workload.kind == "conv":
        network = networks.convolutional(widths, SIDE, KERNEL)
    else:
        network = networks.dense(widths)
    random = workload.pruning == "random"
    domain = UnitBall(SAMPLES, STARTS, STEPS) if trial else workload.points()

    def prepared(trials, seed):
        return engine.prepare(
            network,
            laws.uniform(GAIN),
            METHODS["bernoulli" if random else "magnitude"],
            Fraction(workload.fraction) if random else Count(workload.removed),
            layers="middle" if trial else "all",
            domain=domain,
            trials=trials,
            seed=seed,
        )

    # With many trials asked for, the block is the device's own.
    block = prepared(2**40, 0).block
    names = ("sampled", "lower", "upper") if trial else ("sampled",)

    def run(trials, seed):
        found = [done.trials for done in engine.run_blocks(prepared(trials, seed))]
        return {name: np.concatenate([getattr(b, name) for b in found]) for name in names}

    engine.compiled_block(prepared(block, 0))
    return Candidate(run, block, f"blocks of {block}")
