"""What a JAX user would write: one trial as a function of a key, `jax.random`, `jnp.sort`.

Chosen by a short sweep before timing: a Python loop over the jitted trial, or `lax.map` over a
chunk of keys with a vmapped batch of some size inside. Eight batches make a chunk; one where a
trial has so many weights that calls cost nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np

from peers import LAYERS, Candidate, Workload, batch_sizes, fastest

WORKLOADS = ("sampled", "conv")


def device() -> str:
    """What it runs on."""
    device = jax.devices()[0]
    return device.device_kind if device.platform != "cpu" else "cpu"


def _layer(workload, w, x):
    if workload.kind == "conv":
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")
    return x @ w.T


def _pruned(workload, key, w):
    if workload.pruning == "random":
        return jnp.where(jax.random.bernoulli(key, workload.fraction, w.shape), 0.0, w)
    size = jnp.abs(w)
    return jnp.where(size > jnp.sort(size.reshape(-1))[workload.removed - 1], w, 0.0)


@jax.default_matmul_precision("highest")
def _trial(workload, x, key):
    """The largest distance over the inputs."""

    def network(params):
        h = x
        for w in params[:-1]:
            h = jax.nn.relu(_layer(workload, w, h))
        return _layer(workload, params[-1], h)

    keys = jax.random.split(key, (LAYERS, 2))
    high = workload.half_width
    target = [
        jax.random.uniform(k, workload.weight_shape, minval=-high, maxval=high) for k in keys[:, 0]
    ]
    pruned = [_pruned(workload, k, w) for k, w in zip(keys[:, 1], target, strict=True)]
    d = network(target) - network(pruned)
    return jnp.max(jnp.linalg.norm(d.reshape(len(x), -1), axis=1))


def prepare(workload: Workload) -> Candidate:
    """Compiles and chooses the batch."""
    x = jnp.asarray(workload.points())

    def trial(key):
        return _trial(workload, x, key)

    numbered = jax.jit(lambda root, i: trial(jax.random.fold_in(root, i)))

    def looped(trials, seed):
        root = jax.random.key(seed)
        found = [numbered(root, i) for i in range(trials)]
        return {"sampled": np.asarray([float(v) for v in found], np.float32)}

    def batched(size):
        batches = 8 if LAYERS * workload.size < 2**20 else 1

        @jax.jit
        def chunk(keys):
            return jax.lax.map(jax.vmap(trial), keys)

        def run(trials, seed):
            keys = jax.random.split(
                jax.random.key(seed), (trials // (batches * size), batches, size)
            )
            found = [chunk(k) for k in keys]
            return {"sampled": np.concatenate([np.asarray(v).reshape(-1) for v in found])}

        return Candidate(run, batches * size)

    room = 4 * (4 * LAYERS * workload.size + 2 * workload.width * workload.pixels * workload.inputs)
    made = {"a loop": Candidate(looped, 1)}
    for size in batch_sizes(room, jax.default_backend() == "cpu"):
        made[f"batches of {size}"] = batched(size)
    words, chosen = fastest(made, ordered=True)
    return chosen._replace(choices=words)
