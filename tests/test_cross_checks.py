"""Intervals, confidence sequences and multiple tests against independent libraries.

Skipped where these are not installed.
"""

import numpy as np
import pytest

from jaxprune.statistics import binomial, holm, sequence_limits

ALPHA = 0.01


@pytest.mark.parametrize("n", [10, 1000, 10**6])
def test_clopper_pearson_against_statsmodels(n):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    k = np.unique(np.linspace(1, n - 1, 20).astype(int))
    theirs = proportion.proportion_confint(k, n, ALPHA, method="beta")
    np.testing.assert_allclose(binomial.limits(k, n, ALPHA), theirs, rtol=1e-9)


@pytest.mark.ci
def test_holm_against_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 100):
        p = rng.random(size) ** 4
        _, theirs, *_ = multitest.multipletests(p, method="holm")
        np.testing.assert_allclose(holm(p), theirs, rtol=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.003, 0.07, 0.5])
def test_the_confidence_sequence_against_ville(p):
    ville = pytest.importorskip("ville")
    x = np.random.default_rng(3).random(400) < p
    theirs = ville.BernoulliCS(alpha=ALPHA, prior=(0.5, 0.5), intersect=False)
    theirs.update(x.astype(float))
    n = np.arange(1, len(x) + 1)
    low, high = sequence_limits(np.cumsum(x), n, ALPHA)
    # Theirs are bisected to an absolute 1e-9 or so.
    np.testing.assert_allclose(low, np.ravel(theirs.lower_), atol=1e-6)
    np.testing.assert_allclose(high, np.ravel(theirs.upper_), atol=1e-6)
