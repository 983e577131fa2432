"""Schedules against their closed forms, and what happens between the steps."""

import itertools

import jax
import numpy as np
import pytest
from small_models import apply_to_column

from jaxprune.models import (
    NM,
    Count,
    ErdosRenyi,
    Global,
    Masks,
    Neurons,
    iterative,
    magnitude,
    prune,
    synflow,
)


def model():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {"a": draw(20, 10), "b": draw(10, 20), "bias": draw(10)}


def removed(masks):
    return {path: mask.size - int(np.asarray(mask).sum()) for path, mask in masks.items()}


CLOSED = {
    "linear": lambda final, x: final * x,
    "exponential": lambda final, x: 1 - (1 - final) ** x,
    "cubic": lambda final, x: final - final * (1 - x) ** 3,
}


@pytest.mark.parametrize("schedule", CLOSED)
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("amount", [0.9, Global(0.9), ErdosRenyi(0.9)])
def test_sparsity_follows_the_schedule(schedule, steps, amount):
    done = iterative(model(), "magnitude", amount, steps, schedule)
    assert len(done.sparsity) == steps
    for t, sparsity in enumerate(done.sparsity, start=1):
        if isinstance(amount, ErdosRenyi) and schedule == "exponential":
            continue  # a power for each layer, here of equal sizes and densities
        assert sparsity == pytest.approx(CLOSED[schedule](0.9, t / steps), abs=1 / 400 + 1e-9)
    assert removed(done.masks) == removed(prune(model(), amount=amount))
    assert done.sparsity[-1] == pytest.approx(0.9)


def test_magnitude_in_steps_is_magnitude_at_once():
    done = iterative(model(), magnitude, Global(0.8), 5)
    assert done.masks == prune(model(), amount=Global(0.8))
    np.testing.assert_array_equal(done.params["a"], done.masks.apply(model())["a"])
    assert done.params["bias"] is not None


def test_synflow_in_steps_does_not_collapse_a_layer():
    """100 exponential steps leave a path where one shot may cut a whole layer (their figure 1)."""
    rng = np.random.default_rng(1)
    widths = (16, 64, 4, 64, 4)
    draw = lambda a, b: {"w": rng.normal(size=(b, a)).astype(np.float32)}
    params = {"layers": [draw(a, b) for a, b in itertools.pairwise(widths)]}
    score = jax.jit(lambda p: synflow(apply_to_column, p, (16,)))
    done = iterative(params, score, Global(0.99), 100)
    total = sum(layer["w"].size for layer in params["layers"])
    assert sum(removed(done.masks).values()) == round(0.99 * total)
    assert all(np.asarray(mask).any() for mask in done.masks.values())
    assert np.asarray(score(done.params)["layers.0.w"]).sum() > 0
    assert (np.diff(done.sparsity) >= 0).all()


def test_training_in_between_starts_from_and_ends_with_pruned_weights():
    seen = []

    def after(params, masks):
        seen.append(removed(masks)["a"])
        assert all(not np.asarray(params[path])[~np.asarray(masks[path])].any() for path in masks)
        return jax.tree.map(lambda x: x + 1, params)

    done = iterative(model(), "magnitude", 0.5, 4, "linear", after)
    assert seen == [25, 50, 75, 100]
    assert (np.asarray(done.params["a"]) == 0).sum() == 100
    np.testing.assert_allclose(done.params["bias"], model()["bias"] + 4, rtol=1e-6)
    # Scored anew: the first step's survivors have moved, so magnitude at once would differ.
    assert done.masks != prune(model(), amount=0.5)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", ["a", "bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_training_that_diverges_is_refused(step, name, value, key):
    done = []

    def after(params, masks):
        done.append(masks)
        bad = len(done) == step
        return {**params, name: params[name] + value} if bad else params

    with pytest.raises(ValueError, match=f"after: {name} is not finite after step {step}") as error:
        iterative(model(), "random", 0.5, 3, after=after, key=key)
    assert "\n" not in str(error.value) and len(done) == step


def test_what_was_not_finite_at_first_may_stay():
    params = model() | {"mask": np.full(3, -np.inf, np.float32)}
    done = iterative(params, "magnitude", 0.5, 2, after=lambda params, masks: params)
    assert removed(done.masks) == {"a": 100, "b": 100}


def test_starts_from_earlier_masks():
    first = prune(model(), amount={"a": Count(40), "b": Count(0)})
    done = iterative(model(), "magnitude", Count(100), 4, "linear", masks=first)
    assert removed(done.masks) == {"a": 100, "b": 100}
    assert done.sparsity == pytest.approx([(55 + 25) / 400, 120 / 400, (85 + 75) / 400, 0.5])
    more = iterative(model(), "magnitude", Count(10), 2, "cubic", masks=first)
    assert removed(more.masks) == {"a": 40, "b": 10}


def test_neurons_in_steps(key):
    done = iterative(model(), "random", 0.5, 5, "linear", structure=Neurons(0), key=key)
    assert done.sparsity == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert done.masks == prune(model(), "random", 0.5, structure=Neurons(0), key=key)


def test_everything_in_steps():
    for schedule in ("linear", "cubic"):
        assert iterative(model(), "magnitude", 1.0, 3, schedule).sparsity[-1] == 1.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: iterative(p, "magnitude", 0.5, 0), "steps = 0"),
        (lambda p: iterative(p, "magnitude", 0.5, 2, "cube"), "did you mean 'cubic'"),
        (lambda p: iterative(p, "magnitude", 1.0, 2), "nothing left"),
        (lambda p: iterative(p, "magnitude", None, 2, structure=NM(2, 4, 0)), "N:M has no amount"),
        (lambda p: iterative(p, "magnitude", 0.5, 2, masks=Masks({"c": p["a"] > 0})), "mask = 'c'"),
    ],
)
def test_bad_arguments(call, said):
    with pytest.raises(ValueError, match=said):
        call(model())
