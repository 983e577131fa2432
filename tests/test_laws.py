"""Every law against its own moments, quantiles and SciPy; false-alarm rate 1e-6 a test."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from heavy_law import LOMAX
from scipy import integrate, stats

from jaxprune import laws
from jaxprune.bounds import domination

FAMILIES = {"uniform": stats.uniform(-1, 2), "normal": stats.norm()}


N = 200_000
EXTREME = np.array([0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)


@pytest.fixture(params=FAMILIES)
def pair(request):
    return getattr(laws, request.param.upper()), FAMILIES[request.param]


@functools.cache
def program(family):
    return jax.jit(lambda scale, bits: laws.sample(family, scale, bits))


def sampled(family, scale=1.0, bits=None):
    """A weight for each of `bits`, of which there are always as many: one program a family."""
    some = np.random.default_rng(20210520).integers(0, 2**32, N, np.uint32)
    bits = some if bits is None else np.append(bits, some[len(bits) :])
    return np.asarray(program(family)(np.float32(scale), bits))


def test_samples_follow_the_distribution_function(pair):
    family, oracle = pair
    w = sampled(family)
    assert stats.kstest(w, oracle.cdf).pvalue > 1e-6
    assert stats.binomtest(int((w > 0).sum()), len(w)).pvalue > 1e-6
    assert (w != 0).all()


def test_samples_are_symmetric_and_scaled_exactly(pair):
    family, _ = pair
    bits = np.random.default_rng(1).integers(0, 2**32, N, np.uint32)
    w = sampled(family, 1.0, bits)
    assert (sampled(family, 1.0, bits ^ np.uint32(2**31)) == -w).all()
    assert (sampled(family, 0.25, bits) == np.float32(0.25) * w).all()


def test_extreme_bits_reach_the_tail(pair):
    family, oracle = pair
    w = sampled(family, 1.0, EXTREME)[: len(EXTREME)]
    assert np.isfinite(w).all() and (np.abs(w) <= family.bound).all() and (w != 0).all()
    if family is laws.NORMAL:
        assert np.abs(w).max() == pytest.approx(oracle.isf(2.0**-33), rel=1e-5)


def test_a_family_that_agrees_with_itself_is_taken():
    for family in (laws.UNIFORM, laws.NORMAL, LOMAX):
        laws.check_family(family)
    with pytest.raises(ValueError, match="family"):
        laws.Law("uniform")


BROKEN = {
    "variance": {"variance": math.inf},
    "log_moment\\(1\\)": {"variance": 0.7},
    "at most bound": {"bound": 3.0},
    "log_moment at least": {
        "log_moment": lambda j: min(LOMAX.log_moment(j), 1.0 + LOMAX.log_moment(1))
    },
    "density that falls": {"magnitude_quantile": lambda p: np.sqrt(p)},
    "and 0 at 0": {"magnitude_quantile": lambda p: LOMAX.magnitude_quantile(p) + 0.1},
    "finite below 1": {
        "magnitude_quantile": lambda p: LOMAX.magnitude_quantile(p) if p < 0.99 else math.inf
    },
    "finite below 1, and": {"magnitude_quantile": lambda p: math.nan},
    "kept_energy": {"kept_energy": lambda q: 1.0 - q**2},
    "magnitude with": {"magnitude": lambda u: 1.01 * LOMAX.magnitude(u)},
}


@pytest.mark.parametrize("named", BROKEN)
def test_a_family_that_contradicts_itself_is_refused(named):
    """On trust, theorems would certify by moments that the sampled weights do not have."""
    with pytest.raises(ValueError, match=f"family = 'lomax'.*{named}"):
        laws.Law(dataclasses.replace(LOMAX, **BROKEN[named]))


def test_a_name_proves_nothing():
    family = dataclasses.replace(LOMAX, name="normal")
    assert (
        domination.gaussian_deviation(family) == domination.gaussian_lipschitz(family) == math.inf
    )


def test_bits_of_another_width_are_refused():
    with pytest.raises(ValueError, match="uint32"):
        laws.sample(laws.UNIFORM, 1.0, np.zeros(3, np.uint64))


@pytest.mark.parametrize("j", [1, 2, 5, 10])
def test_moments(pair, j):
    family, oracle = pair
    value, _ = integrate.quad(lambda x: x ** (2 * j) * oracle.pdf(x), *oracle.support())
    assert np.exp(family.log_moment(j)) == pytest.approx(value, rel=1e-6)
    assert family.variance == pytest.approx(np.exp(family.log_moment(1)))


@pytest.mark.parametrize("q", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_magnitude_quantile_and_kept_energy(pair, q):
    family, oracle = pair
    tau = family.magnitude_quantile(q)
    assert oracle.cdf(tau) - oracle.cdf(-tau) == pytest.approx(q)
    kept, _ = integrate.quad(lambda x: 2 * x * x * oracle.pdf(x), tau, oracle.support()[1])
    assert family.kept_energy(q) == pytest.approx(kept / family.variance, abs=1e-9)


@pytest.mark.parametrize("scaling", laws.SCALINGS)
@pytest.mark.parametrize("make", [laws.uniform, laws.normal])
def test_variance_of_every_scaling(make, scaling):
    law = make(gain=1.5, scaling=scaling)
    fan_in, fan_out = 40, 100
    w = sampled(law.family, law.scale(fan_in, fan_out)).astype(np.float64)
    expected = law.variance(fan_in, fan_out)
    error = np.sqrt((np.mean(w**4) - expected**2) / len(w))
    assert abs(np.mean(w**2) - expected) < 4.9 * error
    rule = {"he": 2 / 40, "glorot": 2 / 140, "lecun": 1 / 40}
    if scaling == "max":
        assert law.scale(fan_in, fan_out) == pytest.approx(1.5 / 10)
    else:
        assert expected == pytest.approx(1.5**2 * rule[scaling])


@pytest.mark.parametrize(
    "arguments", [{"gain": 0.0}, {"gain": float("nan")}, {"gain": True}, {"scaling": "hee"}]
)
def test_bad_laws(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        laws.uniform(**arguments)
