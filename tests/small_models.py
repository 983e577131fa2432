"""Small given models for tests: parameters and masks drawn in NumPy, and what they compute.

Drawing them compiles nothing. Tests that need no shape of their own take `CANONICAL`, so that one
compiled program serves them all.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models import Masks

CANONICAL = (2, 12, 12, 3)
"""Widths of the dense stack that most tests share."""

BIASES = ("bias", "b")


def dense_stack(widths=CANONICAL, seed=0, biases=1.0):
    """Parameters with outputs first, under PyTorch's names; no biases if their scale is 0."""
    rng = np.random.default_rng(seed)
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        w = rng.normal(size=(b, a)) / a**0.5
        params[f"layers.{i}.weight"] = w.astype(np.float32)
        if biases:
            params[f"layers.{i}.bias"] = (biases * rng.normal(size=b)).astype(np.float32)
    return params


def smallest_removed(params, weights, biases=None):
    """Masks without the smallest share of each weight array, and of each bias if one is given."""
    masks = {}
    for name, x in params.items():
        share = biases if name.rpartition(".")[2] in BIASES else weights
        if share is not None:
            kept = np.ones(x.size, bool)
            kept[np.argsort(abs(x), axis=None, kind="stable")[: round(share * x.size)]] = False
            masks[name] = kept.reshape(x.shape)
    return Masks(masks)


def randomly_removed(params, share, seed):
    """Masks without a random share of each weight array."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, x in params.items():
        if name.rpartition(".")[2] not in BIASES:
            kept = rng.permutation(np.arange(x.size) >= round(share * x.size))
            masks[name] = kept.reshape(x.shape)
    return Masks(masks)


def applied(params, masks):
    """The pruned parameters."""
    return {name: np.where(masks[name], p, 0) if name in masks else p for name, p in params.items()}


def relu64(a):
    """max(a, 0) in NumPy."""
    return np.maximum(a, 0.0)


def outputs64(params, x, fn=relu64):
    """Outputs of a `dense_stack` at rows x, in NumPy's float64."""
    wide = {name: np.asarray(p, np.float64) for name, p in params.items()}
    count = sum(name.endswith("weight") for name in wide)
    for i in range(count):
        w = wide[f"layers.{i}.weight"]
        x = x @ w.T + wide.get(f"layers.{i}.bias", np.zeros(len(w)))
        x = fn(x) if i < count - 1 else x
    return x


def apply(params, x, fn=jax.nn.relu, kind=None):
    """Outputs of a `dense_stack` at rows x; computed in a type of its own if one is given."""
    count = sum(name.endswith("weight") for name in params)
    own = lambda a: a if kind is None else jnp.asarray(a, kind)
    for i in range(count):
        w, b = params[f"layers.{i}.weight"], params.get(f"layers.{i}.bias")
        x = own(x) @ own(w).T
        x = x if b is None else x + own(b)[None]
        x = fn(x) if i < count - 1 else x
    return x


def apply_to_column(params, x, fn=jax.nn.relu):
    """Outputs of `{"layers": [{"w": ...}, ...]}` at one column x; without biases."""
    *hidden, last = params["layers"]
    for layer in hidden:
        x = fn(layer["w"] @ x)
    return last["w"] @ x
