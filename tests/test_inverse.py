"""The theorems read backwards, against scans of every width and every count."""

import itertools
import math

import numpy as np
import pytest
from tiers import grid

from jaxprune import laws, networks, pruning
from jaxprune.bounds import (
    certify,
    infinite_width,
    largest_amounts,
    largest_sparsity,
    least_delta,
    least_width,
    search,
    typical_largest_amounts,
    typical_largest_sparsity,
    typical_least_width,
)

LAW, DELTA = laws.uniform(6**0.5), 0.1
METHODS = [pruning.magnitude, pruning.random]
RANDOM_FIRST = [pruning.random, pytest.param(pruning.magnitude, marks=pytest.mark.slow)]
NETWORK = networks.dense((6, 5, 5, 4))


def square(d):
    return networks.dense((d,) * 4)


def rising_values(rng, size):
    """Flat stretches, jumps, zeros in front and infinity behind: all that a bound may do."""
    values = np.cumsum(rng.exponential(1.0, size) ** 3 * rng.integers(0, 2, size))
    values[values > values[rng.integers(size)]] = math.inf if rng.integers(2) else 1e9
    return values


def test_searches_against_scans():
    rng = np.random.default_rng(3)
    for _ in range(300):
        values = rising_values(rng, int(rng.integers(2, 60)))
        eps = float(rng.choice(values[np.isfinite(values)], 1)[0]) + 1e-9
        low = int(rng.integers(len(values) - 1))
        at = lambda n, values=values: float(values[n])
        holds = [n for n in range(low, len(values)) if values[n] <= eps]
        assert search.largest(at, low, len(values) - 1, eps) == max(holds, default=low)
        # Falling with n, refused (NaN) from some n on, as widths are.
        values, refused = values[::-1], int(rng.integers(1, len(values)))
        if values[0] > eps:
            at = lambda n, v=values, r=refused: math.nan if n >= r else float(v[n])
            fails, found = search.before_refusal(at, 0, len(values), eps)
            good = [n for n in range(refused) if values[n] <= eps]
            assert (found in good) if good else (found is None)
            assert values[fails] > eps
            if found is not None and fails > 0:
                assert search.boundary(at, fails, found, eps) == (good[0] - 1, good[0])
    assert list(search.doubling(3, 20)) == [3, 6, 12, 20]


@pytest.mark.parametrize(
    "most, method", grid([10, 16], [pruning.random, pruning.magnitude], every=4), ids=str
)
def test_least_width_against_a_scan(most, method):
    amount = pruning.Sublinear(0.5)
    eps = certify(square(most // 2), LAW, method, amount, delta=DELTA).eps
    widths = range(2, most + 1)
    gaps = {d: certify(square(d), LAW, method, amount, delta=DELTA).eps for d in widths}
    first = min(d for d, gap in gaps.items() if gap <= eps)
    found = least_width(square, LAW, method, amount, eps=eps, delta=DELTA, widths=(2, most))
    assert found.eps == gaps[found.width] <= eps
    assert found.below is None or found.below == gaps[found.width - 1] > eps
    if (
        all(gaps[d] > eps for d in range(2, first))
        and max(gaps[d] for d in range(first, most + 1)) <= eps
    ):
        assert found.width == first
    assert dict(found.probes).items() <= gaps.items()


def test_least_width_that_there_is_not():
    arguments = (square, LAW, pruning.random, pruning.Sublinear(0.25))
    assert least_width(*arguments, eps=1e-3, delta=DELTA, widths=(2, 16)) is None
    with pytest.raises(ValueError, match=r"^amount = .*removes nothing"):
        least_width(square, LAW, pruning.random, pruning.Fraction(0.0), eps=1.0)
    with pytest.raises(ValueError, match=r"^count = 500: "):
        least_width(square, LAW, pruning.random, pruning.Count(500), eps=1.0, widths=(2, 8))
    for change in ({"eps": 0.0}, {"delta": 0.0}, {"widths": (9, 3)}):
        with pytest.raises(ValueError, match=f"^{next(iter(change))} = "):
            least_width(*arguments, **{"eps": 1.0} | change)


SMALL = networks.dense((5, 4, 3, 4))


@pytest.mark.parametrize(
    "network, method", grid([SMALL, NETWORK], [pruning.random, pruning.magnitude], every=4), ids=str
)
def test_largest_sparsity_against_a_scan(network, method):
    size = network.weight_counts[1]
    gaps = [0.0] + [
        certify(network, LAW, method, pruning.Count(k), delta=DELTA).eps for k in range(1, size + 1)
    ]
    for eps in (gaps[3], gaps[size // 2], 1.001 * max(gaps)):
        found = largest_sparsity(network, LAW, method, eps=eps, delta=DELTA)
        k = round(found.sparsity * size)
        assert found.removed == {"dense2": k} and found.eps == pytest.approx(gaps[k])
        assert found.eps <= eps
        if k < size:
            assert found.above == pytest.approx(gaps[k + 1]) and found.above > eps
        else:
            assert found.above is None
    assert largest_sparsity(network, LAW, method, eps=gaps[1] / 2, delta=DELTA).sparsity == 0


@pytest.mark.parametrize(
    "widths, method",
    grid([(3, 3, 2), (4, 4, 3)], [pruning.random, pruning.magnitude], every=4),
    ids=str,
)
def test_amounts_by_layer_are_certified_and_cannot_grow(widths, method):
    network = networks.dense(widths)
    eps = certify(network, LAW, method, pruning.Fraction(0.1), layers="all", delta=DELTA).eps
    found = largest_amounts(network, LAW, method, eps=eps, delta=DELTA, layers="all")
    gap = lambda amounts: certify(network, LAW, method, amounts, delta=DELTA).eps
    kept = {name: amount for name, amount in found.amounts.items() if amount.k}
    assert gap(kept) == pytest.approx(found.eps) and found.eps <= eps
    common = largest_sparsity(network, LAW, method, eps=eps, delta=DELTA, layers="all")
    assert sum(a.k for a in found.amounts.values()) >= sum(common.removed.values())
    for name, count in zip(network.names, network.weight_counts, strict=True):
        if found.amounts[name].k < count:
            assert gap(kept | {name: pruning.Count(found.amounts[name].k + 1)}) > eps


def test_typical_inverses_against_scans():
    method, amount = pruning.random, pruning.Sublinear(0.25)
    gap = lambda d: infinite_width(square(d), LAW, method, amount).typical_gap
    eps = gap(40)
    found = typical_least_width(square, LAW, method, amount, eps=eps * (1 + 1e-12))
    first = min(d for d in range(2, 60) if gap(d) <= eps * (1 + 1e-12))
    assert found.width == first
    size = NETWORK.weight_counts[1]
    gaps = [infinite_width(NETWORK, LAW, method, pruning.Count(k)).typical_gap
            for k in range(size + 1)]  # fmt: skip
    k = size // 3
    found = typical_largest_sparsity(NETWORK, LAW, method, eps=gaps[k] * (1 + 1e-12))
    assert round(found.sparsity * size) == k


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_typical_amounts_against_every_pair_of_counts(method):
    network = networks.dense((3, 4, 3))
    gap = lambda j, k: (
        infinite_width(
            network, LAW, method, {"dense1": pruning.Count(j), "dense2": pruning.Count(k)}
        ).typical_gap
    )
    gaps = {pair: gap(*pair) for pair in itertools.product(range(13), repeat=2)}
    for eps in (gaps[4, 4], gaps[7, 7]):
        found = typical_largest_amounts(network, LAW, method, eps=eps * (1 + 1e-12), layers="all")
        j, k = (amount.k for amount in found.amounts.values())
        best = max(sum(pair) for pair, value in gaps.items() if value <= eps * (1 + 1e-12))
        assert found.eps == pytest.approx(gaps[j, k]) and found.sparsity == (j + k) / 24
        assert found.eps <= eps * (1 + 1e-12) and best - 1 <= j + k <= best
        for more in ((j + 1, k), (j, k + 1)):
            assert max(more) > 12 or gaps[more] > eps * (1 + 1e-12)


@pytest.mark.parametrize("method", RANDOM_FIRST, ids=str)
def test_least_delta_is_certified_and_least(method):
    amount = pruning.Sublinear(0.25)
    for delta in (0.3, 1e-3, 1e-40):
        eps = certify(NETWORK, LAW, method, amount, delta=delta).eps
        found = least_delta(NETWORK, LAW, method, amount, eps=eps)
        assert certify(NETWORK, LAW, method, amount, delta=found).eps <= eps
        assert certify(NETWORK, LAW, method, amount, delta=0.98 * found).eps > eps
        assert found <= 1.011 * delta
    assert least_delta(NETWORK, LAW, method, amount, eps=1e-3) is None
    assert least_delta(NETWORK, LAW, method, pruning.Count(0), eps=1e-3) == pytest.approx(1e-300)
