"""The engine against a float64 twin fed the same bits, closed forms, and itself.

Every random test fixes its seed and would raise a false alarm for one seed in 10^6.
"""

import ast
import dataclasses
import functools
import itertools
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from oracles import NOT_FINITE
from scipy import stats
from threadpoolctl import threadpool_info, threadpool_limits

from jaxprune import activations, bounds, engine, inputs, laws, networks, pruning
from jaxprune.engine import GUARD, Tally, keys, memory
from jaxprune.engine.blocks import words
from jaxprune.engine.sums import ExactSum, Histogram
from jaxprune.engine.trial import Trial, masks, target
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.pruning import Fraction, Sublinear
from jaxprune.types import BrokenInvariant

ci, slow = pytest.mark.ci, pytest.mark.slow
LAW, HALF = laws.uniform(math.sqrt(6)), Fraction(0.5)
SMALL = UnitBall(samples=16, starts=4, steps=4)

# Most tests sample this network over this ball, or these rows, in blocks of one size: the engine
# compiles the bracket once for all of them.
NETWORK = networks.dense((4, 5, 5, 3))
BALL = UnitBall(samples=8, starts=4, steps=2)
ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
BALL_BLOCK, ROWS_BLOCK = 8, 40
TARGETS = 32  # given networks of a run


def trial_ids(ids):
    ids = np.asarray(ids, np.uint64)
    return (ids >> 32).astype(np.uint32), (ids & 0xFFFFFFFF).astype(np.uint32)


def gather(run):
    """All trials of a run as NumPy arrays."""
    blocks = [done.trials for done in engine.run_blocks(run)]
    return Trial(*(np.concatenate(field) for field in zip(*blocks, strict=True)))


def over_ball(targets=LAW, method=pruning.random, amount=HALF, **options):
    """A run of the one network over the one ball; laws, methods and amounts share its bracket."""
    options = {"trials": 64, "domain": BALL, "block": BALL_BLOCK, **options}
    return engine.prepare(NETWORK, targets, method, amount, **options)


def over_rows(targets=LAW, method=pruning.random, amount=HALF, **options):
    """A run of the one network over the rows."""
    options = {"trials": 120, "domain": ROWS, "block": ROWS_BLOCK, **options}
    return engine.prepare(NETWORK, targets, method, amount, **options)


def given_targets():
    """`TARGETS` networks of Gaussian weights."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(TARGETS, *s)).astype(np.float32) for s in NETWORK.weight_shapes]


@functools.cache
def measured_over_ball():
    return gather(over_ball())


@functools.cache
def measured_given_targets():
    """Magnitude pruning of the given targets."""
    return gather(over_ball(given_targets(), pruning.magnitude, Fraction(0.3), trials=TARGETS))


# --- keys


@jax.jit
def key_and_bits(root, purpose, layer, high, low):
    """The words of a trial's key, and four random words drawn with it."""
    key = keys.trial_key(root, purpose, layer, (high, low))
    return jax.random.key_data(key), jax.random.bits(key, (4,))


def key_words(*arguments):
    return tuple(np.asarray(key_and_bits(*arguments)[0]).tolist())


def bits_words(*arguments):
    return tuple(np.asarray(key_and_bits(*arguments)[1]).tolist())


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "7", np.int64(2**40), None])
def test_seeds_outside_their_range_are_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        keys.root_key(seed)


def test_trial_ids_beyond_32_bits_do_not_wrap():
    ids = [0, 1, 5, 2**32 - 1, 2**32, 2**32 + 1, 2**32 + 5, 2**33, 2**40 + 1]
    root = keys.root_key(0)
    rows = {
        bits_words(root, keys.WEIGHTS, 0, *words) for words in zip(*trial_ids(ids), strict=True)
    }
    assert len(rows) == len(ids)


@pytest.mark.parametrize("start", [0, 2**32 - 2, 2**40 + 1, keys.MAX_TRIALS - 4])
def test_blocks_hand_on_both_words_of_a_trial_id(start):
    high, low = words(start, 4)
    assert high.dtype == low.dtype == np.uint32
    ids = [(int(h) << 32) + int(l) for h, l in zip(high, low, strict=True)]
    assert ids == list(range(start, start + 4))


def test_keys_differ_by_seed_purpose_layer_and_trial():
    drawn = {
        key_words(keys.root_key(seed), purpose, layer, np.uint32(0), trial)
        for seed in (0, 1)
        for purpose in (keys.WEIGHTS, keys.MASK, keys.INPUTS, keys.TRAINING)
        for layer in (0, 1)
        for trial in (np.uint32(0), np.uint32(1))
    }
    assert len(drawn) == 2 * 4 * 2 * 2


def test_all_keys_of_a_trial_are_the_single_ones():
    root, trial = keys.root_key(3), (np.uint32(1), np.uint32(2))
    drawn = jax.jit(lambda trial: keys.trial_keys(root, keys.TRIAL_PURPOSES, 4, trial))(trial)
    together = np.asarray(jax.random.key_data(drawn))
    for purpose in (keys.WEIGHTS, keys.MASK, keys.INPUTS):
        for layer in range(4):
            assert tuple(together[purpose, layer]) == key_words(root, purpose, layer, *trial)


def test_double_precision_draws_the_same_weights_and_masks():
    """JAX's default random bits are 64 wide there; ours stay 32."""
    run = over_rows()
    with jax.enable_x64(True):
        wide = engine.draw(run, 5)
    for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(engine.draw(run, 5)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_double_precision_sessions_have_the_same_gaps():
    code = (
        "import jaxprune as jp; t = jp.simulate(jp.dense((4, 5, 5, 3)), jp.uniform(), jp.magnitude,"
        " jp.Fraction(0.5), eps=[1.0], trials=5, domain=jp.UnitBall(4, 1, 1)); print(t.worst)"
    )
    worst = []
    for flag in ("0", "1"):
        environment = {**os.environ, "JAX_ENABLE_X64": flag}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        worst.append(ast.literal_eval(done.stdout))
    assert [i for _, i in worst[0]] == [i for _, i in worst[1]]
    np.testing.assert_allclose(*([gap for gap, _ in w] for w in worst), rtol=1e-5)


def test_golden_bits():
    """The stream is part of the contract: a change here needs a new STREAM_VERSION."""
    drawn = bits_words(keys.root_key(7), keys.MASK, 2, np.uint32(1), np.uint32(3))
    assert keys.STREAM_VERSION == 1
    assert list(drawn) == threefry_reference(7, [1, keys.MASK, 2, 1, 3], 4)


def threefry_reference(seed, folds, n):
    """Threefry-2x32-20 in Python integers (Salmon et al. 2011), as JAX composes it."""
    mask = 0xFFFFFFFF

    def hash2(key, counter):
        ks = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
        x = [(counter[0] + ks[0]) & mask, (counter[1] + ks[1]) & mask]
        rotations = [(13, 15, 26, 6), (17, 29, 16, 24)]
        for group in range(5):
            for r in rotations[group % 2]:
                x[0] = (x[0] + x[1]) & mask
                x[1] = ((x[1] << r) | (x[1] >> (32 - r))) & mask
                x[1] ^= x[0]
            x[0] = (x[0] + ks[(group + 1) % 3]) & mask
            x[1] = (x[1] + ks[(group + 2) % 3] + group + 1) & mask
        return x

    key = [0, seed]
    for data in folds:
        key = hash2(key, [0, data])
    outputs = [hash2(key, [0, i]) for i in range(n)]
    return [a ^ b for a, b in outputs]


# --- blocks


WIDER = networks.dense((12, 20, 16, 8))


@pytest.mark.parametrize(
    ("network", "domain", "method", "blocks"),
    [
        pytest.param(NETWORK, ROWS, pruning.random, (ROWS_BLOCK, 7), marks=pytest.mark.ci),
        pytest.param(WIDER, SMALL, pruning.random, (1, 7, 64), marks=pytest.mark.slow),
        pytest.param(WIDER, SMALL, pruning.magnitude, (7, 64), marks=pytest.mark.slow),
    ],
    ids=["rows-random", "ball-random", "ball-magnitude"],
)
def test_block_size_changes_no_bit_of_weights_and_masks_and_no_count(
    network, domain, method, blocks
):
    trials, eps = 150, None
    runs = {}
    for block in blocks:
        run = engine.prepare(
            network,
            LAW,
            method,
            Fraction(0.2),
            trials=trials,
            domain=domain,
            seed=3,
            block=block,
        )

        @jax.jit
        @jax.vmap
        def sampled(high, low, run=run):
            drawn = keys.trial_keys(run.numbers.root, keys.TRIAL_PURPOSES, 3, (high, low))
            params = target(run.design, run.numbers, (high, low), drawn[keys.WEIGHTS])
            return params, masks(run.design, run.numbers, params, drawn[keys.MASK])[1]

        parts = [
            sampled(*trial_ids(range(start, start + block))) for start in range(0, trials, block)
        ]
        drawn = [
            np.concatenate(leaves)[:trials]
            for leaves in zip(*(jax.tree.leaves(part) for part in parts), strict=True)
        ]
        result = gather(run)
        eps = eps or (float(np.median(result.upper)), float(np.median(result.lower)))
        runs[block] = drawn, result, Tally.of(eps, range(trials), result)
    (drawn, result, tally), *others = runs.values()
    for other_drawn, other_result, other_tally in others:
        for a, b in zip(drawn, other_drawn, strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(result, other_result, strict=True):
            np.testing.assert_allclose(a, b, rtol=GUARD / 10)
        for e, values in zip(eps, (result.upper, result.lower), strict=True):
            near = int((np.abs(values / e - 1) <= 3 * GUARD).sum())
            a, b = tally.counts(e), other_tally.counts(e)
            assert abs(a.close - b.close) <= near and abs(a.far - b.far) <= near


@pytest.mark.parametrize("trials", [1, 7, 8, 9, 59])
def test_the_last_block_is_cut_to_the_trials_wanted(trials):
    short = over_ball()._replace(trials=trials)
    ids = [i for done in engine.run_blocks(short) for i in done.ids]
    assert ids == list(range(trials))
    short, long = gather(short), measured_over_ball()
    np.testing.assert_allclose(short.lower, long.lower[:trials], rtol=GUARD / 10)


def test_numbers_do_not_compile_again():
    programs = set()
    for amount, gain, seed in ((Fraction(0.1), 1.0, 0), (Sublinear(0.5), 2.0, 9)):
        run = over_ball(laws.uniform(gain), amount=amount, seed=seed)
        programs.add(engine.compiled_block(run))
    assert len(programs) == 1


@pytest.mark.ci
def test_laws_and_pruning_methods_share_the_program_that_measures():
    draws, measures = set(), set()
    for law, method in (
        (laws.uniform(), pruning.random),
        (laws.uniform(), pruning.magnitude),
        (laws.normal(), pruning.random),
    ):
        block = engine.compiled_block(over_ball(law, method))
        draws.add(block.draw)
        measures.add(block.measure)
    assert (len(draws), len(measures)) == (3, 1)


@pytest.mark.ci
@pytest.mark.parametrize("chunk", [1, 8, 16])
def test_chunks_change_no_count(chunk):
    """Over rows a block is cut into chunks, with a rest or without one."""
    run = over_rows()
    assert run.chunk == ROWS_BLOCK
    for a, b in zip(gather(run._replace(chunk=chunk)), gather(run), strict=True):
        np.testing.assert_allclose(a, b, rtol=GUARD / 10)


def test_a_block_over_rows_is_whole_chunks():
    x = np.zeros((5, 16), np.float32)
    arguments = networks.dense((16,) * 4), LAW, pruning.random, Fraction(0.2)
    few = engine.prepare(*arguments, trials=1000, domain=x)
    many = engine.prepare(*arguments, trials=10**9, domain=x)
    calls = -(-1000 // few.block)
    assert few.block % few.chunk == 0 and calls >= few.in_flight
    assert calls * few.block < 1000 + calls * few.chunk
    assert many.block % many.chunk == 0 and many.block > many.chunk


@pytest.mark.ci
@pytest.mark.parametrize("method", [pruning.magnitude, pruning.random, pruning.bernoulli], ids=str)
def test_the_fast_path_and_a_plain_one_count_alike(method):
    """The same trials as anyone would write them: `jax.random`, a sort, F and f apart."""
    network, trials, count = networks.dense((16,) * 4), 300, 64
    x = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    amount = Fraction(count / 256)
    run = engine.prepare(network, LAW, method, amount, trials=trials, layers="all", domain=x)
    root, scale = keys.root_key(0), np.float32(LAW.scale(16, 16))

    @jax.jit
    @jax.vmap
    def plain(high, low):
        bits = lambda purpose, i: jax.random.bits(
            keys.trial_key(root, purpose, i, (high, low)), (16, 16)
        )
        h = g = x.T
        for i in range(3):
            b = bits(keys.WEIGHTS, i)
            magnitude = ((b & 0x7FFFFFFF).astype("float32") + 0.5) / 2.0**31
            w = scale * jax.numpy.where(b >> 31 == 1, -magnitude, magnitude)
            coin = (bits(keys.MASK, i) >> 2).astype("float32") / 2.0**30
            rank = abs(w) if method is pruning.magnitude else coin
            if method is pruning.bernoulli:
                kept = coin >= count / 256
            else:
                kept = rank >= jax.numpy.sort(rank.ravel())[count]
            h, g = w @ h, (w * kept) @ g
            if i < 2:
                h, g = jax.nn.relu(h), jax.nn.relu(g)
        return jax.numpy.linalg.norm(h - g, axis=0).max()

    expected = np.asarray(plain(*trial_ids(range(trials))), np.float64)
    found = gather(run).lower
    np.testing.assert_allclose(found, expected, rtol=GUARD / 10)
    for e in np.quantile(expected, [0.1, 0.5, 0.9]):
        apart = np.abs(expected / e - 1) > GUARD
        assert (found[apart] <= e).sum() == (expected[apart] <= e).sum()


@pytest.mark.ci
def test_the_fast_stream_is_another_one_of_the_same_law():
    """Kolmogorov-Smirnov on 4,000 gaps each, at a false-alarm rate of 1e-6."""
    one, other = (
        gather(over_rows(amount=Fraction(0.3), trials=4000, stream=stream)).lower
        for stream in ("threefry-20", "threefry-13")
    )
    assert np.mean(one == other) < 0.01
    assert stats.ks_2samp(one, other).pvalue > 1e-6
    with pytest.raises(ValueError, match="stream = 'philox'"):
        over_rows(stream="philox")


def test_accuracy_needs_classes():
    network = networks.convolutional((1, 2, 2), 4)
    x = np.zeros((5, 1, 4, 4))
    with pytest.raises(ValueError, match="no classes"):
        engine.prepare(
            network,
            LAW,
            pruning.random,
            Fraction(0.5),
            layers="all",
            labelled=(x, np.zeros(5, int)),
        )


def test_too_large_for_memory_is_refused_before_anything_is_compiled():
    network = networks.dense((40_000, 40_000, 40_000, 40_000))
    with pytest.raises(ValueError, match="GiB"):
        engine.prepare(network, LAW, pruning.random, Fraction(0.5), domain=np.ones((1, 40_000)))


@pytest.mark.parametrize(
    ("network", "domain", "block"),
    [
        (NETWORK, BALL, BALL_BLOCK),
        pytest.param(networks.dense((64,) * 4), UnitBall(), 16, marks=pytest.mark.slow),
        pytest.param(
            networks.convolutional((3, 16, 16, 3), 8), UnitBall(), 16, marks=pytest.mark.slow
        ),
        pytest.param(networks.dense((64,) * 4), LinfBall(), 16, marks=pytest.mark.ci),
    ],
    ids=str,
)
def test_the_memory_estimate_is_an_upper_bound(network, domain, block):
    run = engine.prepare(network, LAW, pruning.random, HALF, domain=domain, block=block)
    programs = engine.compiled_block(run)
    drawing, measuring = programs.draw.memory_analysis(), programs.measure.memory_analysis()
    needed = max(
        drawing.temp_size_in_bytes + drawing.output_size_in_bytes,
        measuring.temp_size_in_bytes + measuring.argument_size_in_bytes,
    )
    assert needed <= block * memory.trial_bytes(run.design, domain.samples) <= 20 * needed


# --- oracles


def twin(bits, coins, scales, amount, method, x):
    """Largest distance at the inputs `x` and an upper bound of the gap, of one trial whose middle
    layer is pruned, in NumPy float64 from raw bits."""
    full, pruned = [], []
    for i, (b, c) in enumerate(zip(bits, coins, strict=True)):
        magnitude = ((b & 0x7FFFFFFF) + 0.5) / 2.0**31
        w = np.where(b >> 31 == 1, -magnitude, magnitude) * scales[i]
        full.append(w)
        if i == 1 and method is pruning.bernoulli:
            w = np.where(c >> 2 < round(amount.rate(w.size) * 2**30), 0, w)
        elif i == 1:
            order = np.abs(w) if method is pruning.magnitude else c >> 2
            w = w.copy().ravel()
            w[np.argsort(order.ravel(), kind="stable")[: amount.count(w.size)]] = 0
            w = w.reshape(b.shape)
        pruned.append(w)

    def forward(ws):
        h = x.T
        for w in ws[:-1]:
            h = np.maximum(w @ h, 0)
        return ws[-1] @ h

    norm = lambda w: np.linalg.norm(w, 2)
    product = norm(full[0]) * norm(full[1] - pruned[1]) * norm(full[2])
    distances = np.linalg.norm(forward(full) - forward(pruned), axis=0)
    return distances.max(), product


@functools.cache
def raw(network, samples, seed, trials):
    """Bits of the weights, bits of the masks and sampled inputs of many trials."""
    root = keys.root_key(seed)

    @jax.jit
    @jax.vmap
    def draw(high, low):
        bits = lambda purpose: [
            jax.random.bits(keys.trial_key(root, purpose, i, (high, low)), shape)
            for i, shape in enumerate(network.weight_shapes)
        ]
        key = keys.trial_key(root, keys.INPUTS, 0, (high, low))
        return bits(keys.WEIGHTS), bits(keys.MASK), inputs.sphere(key, samples, network.in_shape)

    return jax.tree.map(np.asarray, draw(*trial_ids(range(trials))))


METHODS = [pruning.magnitude, pruning.random, pruning.bernoulli]


@pytest.mark.parametrize(
    ("network", "domain", "block", "method"),
    [
        *(
            pytest.param(NETWORK, ROWS, ROWS_BLOCK, method, marks=marks)
            for method, marks in zip(METHODS, (ci, (), ci), strict=True)
        ),
        *((NETWORK, BALL, BALL_BLOCK, method) for method in METHODS[:2]),
        pytest.param(NETWORK, BALL, BALL_BLOCK, METHODS[2], marks=pytest.mark.ci),
        *(
            pytest.param(networks.dense((16, 24, 20, 12)), SMALL, None, m, marks=tier)
            for m, tier in zip(METHODS, (slow, slow, slow), strict=True)
        ),
    ],
    ids=[f"{name}-{m}" for name in ("rows", "ball", "wider") for m in METHODS],
)
def test_float64_twin_fed_the_same_bits(network, domain, block, method):
    """Sampled distances within a tenth of the guard band, the upper bound above the product."""
    trials, scales = 100, [LAW.scale(*layer.fans) for layer in network.layers]
    ball = not isinstance(domain, np.ndarray)
    bits, coins, drawn = raw(network, domain.samples if ball else 1, 11, trials)
    for q in (0.02 if network is not NETWORK else 0.1, 0.5):
        run = engine.prepare(
            network, LAW, method, Fraction(q), trials=trials, domain=domain, seed=11, block=block
        )
        result = gather(run)
        assert (result.sampled * (1 - GUARD / 10) <= result.lower).all()
        assert (result.lower <= result.upper).all()
        for i in range(trials):
            x = drawn[i].T if ball else domain
            weights, chances = [b[i] for b in bits], [c[i] for c in coins]
            amount, x = Fraction(q), x.astype(np.float64)
            sampled, product = twin(weights, chances, scales, amount, method, x)
            assert result.sampled[i] == pytest.approx(sampled, rel=GUARD / 10)
            if ball:
                assert sampled * (1 - 1e-6) <= result.upper[i] <= product * 1.01
            else:
                assert result.lower[i] == pytest.approx(sampled, rel=GUARD / 10)
                assert result.upper[i] == pytest.approx(result.lower[i], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("scaling", laws.SCALINGS)
def test_every_layer_has_its_own_scale(scaling):
    """Of 800 uniform weights or more the largest is above 0.96 of the scale, but with probability
    1e-14. ReLU networks do not show scales in another order: only their product counts there."""
    network, law = networks.dense((10, 80, 20, 40)), laws.uniform(2.0, scaling)
    run = engine.prepare(network, law, pruning.random, HALF, domain=SMALL, seed=2)
    params, _ = engine.draw(run, 0)
    for w, layer in zip(params, network.layers, strict=True):
        scale = law.scale(*layer.fans)
        assert 0.96 * scale < np.abs(w).max() <= scale * (1 + 1e-6)


@pytest.mark.ci
def test_one_gaussian_layer_has_a_known_law():
    """Of a 1 x d layer k random weights go: gap^2 = s^2 chi^2_k, lower and upper alike."""
    d, k, trials = 24, 6, 20_000
    law, shares = laws.normal(), (0.05, 0.5, 0.95)
    eps = [math.sqrt(stats.chi2(k).ppf(p)) * law.scale(d, 1) for p in shares]
    tally = engine.simulate(
        networks.dense((d, 1)),
        law,
        pruning.random,
        pruning.Count(k),
        layers="all",
        eps=eps,
        trials=trials,
        domain=UnitBall(samples=2, starts=1, steps=2),
        seed=5,
    )
    for e, p in zip(eps, shares, strict=True):
        counts = tally.counts(e)
        assert counts.nonfinite == 0 and counts.between < 20
        assert stats.binomtest(counts.close, trials - counts.between, p).pvalue > 1e-6 / 3


@pytest.mark.parametrize(
    ("domain", "law", "method"),
    [
        (np.eye(32, 256, dtype=np.float32), LAW, pruning.random),
        *(
            pytest.param(UnitBall(samples=32, starts=1, steps=0), *case, marks=tier)
            for case, tier in zip(
                itertools.product(
                    (LAW, laws.normal(math.sqrt(2))), (pruning.random, pruning.magnitude)
                ),
                (slow, slow, slow, slow),
                strict=True,
            )
        ),
    ],
    ids=lambda x: "rows" if isinstance(x, np.ndarray) else str(x),
)
def test_infinite_width(domain, law, method):
    """Middle layer of width 512: mean squared gap within 5 standard errors of infinite width; over
    rows width 256."""
    width = domain.shape[1] if isinstance(domain, np.ndarray) else 512
    network, q = networks.dense((width,) * 4), 0.3
    tally = engine.simulate(
        network, law, method, Fraction(q), eps=[1.0], trials=48, domain=domain, seed=1
    )
    expected = bounds.infinite_width(network, law, method, Fraction(q)).mean_squared_gap
    mean, error = tally.mean_squared_gap()
    assert abs(mean - expected) < 5 * error
    assert error < 0.05 * expected


# --- failures


@pytest.mark.parametrize("method", [pruning.magnitude, pruning.random], ids=str)
def test_a_nonfinite_weight_is_never_close(method):
    """One weight of any layer, first, last or in the middle; the trials beside it are finite."""
    ws = given_targets()
    spoiled = list(itertools.product(range(3), NOT_FINITE, (0, -1, None)))
    for i, (layer, value, place) in enumerate(spoiled):
        weights = ws[layer][i].reshape(-1)
        weights[weights.size // 2 if place is None else place] = value
    result = gather(over_ball(ws, method, trials=TARGETS))
    np.testing.assert_array_equal(result.finite, np.arange(TARGETS) >= len(spoiled))
    tally = Tally.of([1e30], range(TARGETS), result)
    assert tally.counts(1e30) == (TARGETS - len(spoiled), 0, 0, len(spoiled))
    bad = Tally.of([1e30], range(len(spoiled)), Trial(*(f[: len(spoiled)] for f in result)))
    assert bad.counts(1e30) == (0, 0, 0, len(spoiled))
    assert bad.worst == () and math.isnan(bad.mean_squared_gap()[0])


@pytest.mark.ci
@pytest.mark.parametrize("widths", [(2, 4), (8, 8), (64, 64), (1000, 1000)])
@pytest.mark.parametrize("method", [pruning.magnitude, pruning.random], ids=str)
def test_a_nonfinite_weight_of_one_layer_is_never_close(widths, method):
    network = networks.dense(widths)
    shape = network.weight_shapes[0]
    for value in NOT_FINITE:
        w = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
        w[0, 0, 0] = w[1, -1, -1] = w[2, shape[0] // 2, shape[1] // 2] = value
        tally = engine.simulate(
            network,
            (w,),
            method,
            HALF,
            layers="all",
            eps=[1e30],
            trials=3,
            domain=UnitBall(samples=2, starts=1, steps=1),
        )
        assert tally.counts(1e30) == (0, 0, 0, 3)
        assert tally.worst == () and math.isnan(tally.mean_squared_gap()[0])


def test_an_infinite_weight_behind_a_relu_is_still_nonfinite():
    """relu(-inf) = 0: the outputs look healthy, the network is not."""
    ws = [np.ones((2, *shape), np.float32) for shape in NETWORK.weight_shapes]
    ws[0][:, 0, :] = -np.inf
    run = over_rows(ws, trials=2, domain=np.abs(ROWS))
    assert not gather(run).finite.any()


def test_overflow_is_nonfinite():
    assert not gather(over_ball(laws.uniform(1e20), trials=16)).finite.any()


@pytest.mark.ci
def test_tiny_and_huge_gaps_keep_their_bracket():
    """Squares of these numbers leave float32's range; the gaps themselves do not."""
    w = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    exact = np.linalg.norm(w.astype(np.float64), 2)
    scales = 10.0 ** np.array([-30, -25, -20, -15, -10, -5, 0, 10, 20, 30])
    run = engine.prepare(
        networks.dense((16, 16)),
        (np.stack([w * np.float32(scale) for scale in scales]),),
        pruning.random,
        Fraction(1.0),
        layers="all",
        trials=len(scales),
        domain=UnitBall(16, 8, 100),
    )
    result = gather(run)
    for i, scale in enumerate(scales):
        tally = Tally.of([1e36], [i], Trial(*(field[i : i + 1] for field in result)))
        ((gap, _),) = tally.worst
        assert 0.99 <= gap / (exact * scale) <= 1 + 1e-5
        mean, _ = tally.mean_squared_gap()
        assert 0.01 < mean / scale**2 < 100


def test_upper_bounds_do_not_vanish_by_underflow():
    """1e-22 * 1e30 * 1e-18: the product of the first and the last is no float32."""
    ws = [np.zeros((TARGETS, *shape), np.float32) for shape in NETWORK.weight_shapes]
    for w, value in zip(ws, (1e-22, 1e30, 1e-18), strict=True):
        w[:, 0, 0] = value
    result = gather(over_ball(ws, pruning.magnitude, Fraction(1.0), trials=8))
    np.testing.assert_allclose(result.lower, 1e-10, rtol=1e-3)
    assert (result.upper >= result.lower).all() and (result.upper <= 1.01e-10).all()


@pytest.mark.ci
def test_upper_bounds_of_single_neurons_do_not_vanish_by_underflow():
    network = networks.dense((1, 1, 1, 1), activations.identity)
    ws = [np.full((1, 1, 1), value, np.float32) for value in (1e-22, 1e30, 1e-18)]
    tally = engine.simulate(
        network, ws, pruning.random, pruning.Count(1), eps=[1.0], trials=1, domain=SMALL
    )
    ((gap, _),) = tally.worst
    assert gap == pytest.approx(1e-10, rel=1e-3)


@pytest.mark.parametrize("method", pruning.METHODS.values(), ids=str)
def test_pruning_nothing_gives_gap_zero(method):
    trials = 48
    result = gather(over_ball(method=method, amount=Fraction(0.0), trials=trials))
    tally = Tally.of([1e-30], range(trials), result)
    assert tally.counts(1e-30).close == trials
    assert tally.upper.quantile(1.0, trials, above=True) == 0.0


@pytest.mark.parametrize("scale", [2.0, 0.25])
def test_scaling_the_last_layer_scales_the_gap(scale):
    """By a power of two: the same rounding, the gap times the factor to the last bit."""
    ws = given_targets()
    scaled = [*ws[:-1], ws[-1] * np.float32(scale)]
    one = measured_given_targets()
    other = gather(over_ball(scaled, pruning.magnitude, Fraction(0.3), trials=TARGETS))
    for name in ("lower", "upper", "sampled"):
        np.testing.assert_array_equal(scale * getattr(one, name), getattr(other, name))


def test_permuting_hidden_neurons_changes_nothing():
    ws = given_targets()
    order = np.random.default_rng(0).permutation(5)
    permuted = [ws[0][:, order], ws[1][:, :, order], ws[2]]
    one = measured_given_targets()
    other = gather(over_ball(permuted, pruning.magnitude, Fraction(0.3), trials=TARGETS))
    for name in ("lower", "upper", "sampled"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5)


def test_given_targets_rows_and_accuracy():
    """Magnitude pruning of a hand-made classifier, by hand."""
    network = networks.dense((2, 2))
    w = np.array([[[1.0, 0.1], [0.2, 1.0]]], np.float32)
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.7]], np.float32)
    y = np.array([0, 1, 0])
    tally = engine.simulate(
        network,
        (w,),
        pruning.magnitude,
        pruning.Count(2),
        layers="all",
        eps=[0.2, 0.25],
        trials=1,
        domain=x,
        labelled=(x, y),
    )
    # The removed part is [[0, .1], [.2, 0]]: distances .2, .1 and |(.07, .12)|.
    assert tally.worst == ((pytest.approx(0.2), 0),)
    assert tally.counts(0.25).close == 1
    assert tally.counts(0.2) == (0, 1, 0, 0)  # inside the guard band: between
    assert (tally.target_correct, tally.pruned_correct) == (2, 2)


def test_accuracy_is_counted_beside_the_bracket_that_drawn_targets_have():
    """One program brackets drawn and given targets; classes are counted by NumPy's float64."""
    weights, y = given_targets(), np.arange(len(ROWS)) % NETWORK.out_shape[0]
    amount = pruning.Count(12)
    run = over_ball(weights, pruning.magnitude, amount, trials=TARGETS, labelled=(ROWS, y))
    assert engine.compiled_block(run).measure is engine.compiled_block(over_ball()).measure
    counts = []
    for ws in zip(*weights, strict=True):
        first, middle, last = map(np.float64, ws)
        gone = np.argsort(np.abs(middle).ravel(), kind="stable")[:12]
        kept = np.where(np.isin(np.arange(middle.size), gone).reshape(middle.shape), 0.0, middle)
        hidden = np.maximum(first @ ROWS.T, 0)
        outputs = [last @ np.maximum(w @ hidden, 0) for w in (middle, kept)]
        counts.append([np.sum(np.argmax(out, axis=0) == y) for out in outputs])
    found = gather(run)
    np.testing.assert_array_equal(found.target_correct, [target for target, _ in counts])
    np.testing.assert_array_equal(found.pruned_correct, [pruned for _, pruned in counts])


@pytest.mark.ci
def test_distances_on_a_data_set():
    """Mean, largest and relative distance of each trial by NumPy; 0 / 0 is 0 and 1 / 0 infinite."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(50, 3, 4)).astype(np.float32)
    x = rng.normal(size=(30, 4)).astype(np.float32)

    def simulate(targets, rows):
        return engine.simulate(
            networks.dense((4, 3)),
            (targets,),
            pruning.magnitude,
            pruning.Count(4),
            layers="all",
            eps=[1.0],
            trials=50,
            domain=rows,
        )

    # Each row twice, so that the run with as many rows of zeros is the same program.
    tally = simulate(w, np.concatenate([x, x]))
    order = np.argsort(np.abs(w.reshape(50, 12)), axis=1)
    gone = np.zeros((50, 12))
    smallest = np.take_along_axis(w.reshape(50, 12), order[:, :4], 1)
    np.put_along_axis(gone, order[:, :4], smallest, 1)
    length = lambda m: np.linalg.norm(np.einsum("toi,ni->tno", m.astype(np.float64), x), axis=2)
    distances, sizes = length(gone.reshape(w.shape)), length(w)
    relative = (distances / sizes).max(axis=1)
    for (mean, error), values in (
        (tally.mean_distance(), distances.mean(axis=1)),
        (tally.relative_distance(), relative),
    ):
        assert mean == pytest.approx(values.mean(), rel=1e-5)
        assert error == pytest.approx(stats.sem(values), rel=1e-4)
    for (low, high), values in (
        (tally.mean_distance_quantile(0.5), distances.mean(axis=1)),
        (tally.relative_distance_quantile(0.5), relative),
        (tally.gap_quantile(0.5), distances.max(axis=1)),
    ):
        assert low * (1 - 1e-5) <= np.sort(values)[24] <= high * (1 + 1e-5)
    # An input of zeros has outputs of zeros: nothing changes there.
    padded = simulate(w, np.concatenate([x, 0 * x]))
    assert padded.relative_distance() == pytest.approx(tally.relative_distance(), rel=1e-5)
    # F = x_1 - x_2 vanishes at (1, 1), and f there does not: infinite, in a trial that counts.
    tally = engine.simulate(
        networks.dense((2, 1)),
        (np.array([[[1.0, -1.0]]], np.float32),),
        pruning.magnitude,
        pruning.Count(1),
        layers="all",
        eps=[1.0],
        trials=1,
        domain=np.ones((1, 2)),
    )
    assert tally.nonfinite == 0 and tally.mean_distance()[0] == 1
    assert tally.relative_distance()[0] == math.inf
    assert tally.relative_distance_quantile(0.5) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trials": 0}, "trials"),
        ({"trials": 2.0}, "trials"),
        ({"trials": np.int64(2**60)}, "trials"),
        ({"trials": 10**11}, "trials = 100000000000: an integer from 1 to 10000000000"),
        ({"eps": [1.0] * 1001}, "number of epsilons = 1001"),
        ({"eps": [0.0]}, "eps"),
        ({"eps": 0.5}, "eps"),
        ({"amount": 0.3}, "amount"),
        ({"pruning": "random"}, "pruning"),
        ({"targets": "uniform"}, "targets = .uniform.: jp.uniform"),
        ({"targets": 3}, "targets"),
        ({"domain": "unit ball"}, "domain = .unit ball.: UnitBall"),
        ({"layers": 5}, "layers"),
        ({"labelled": (np.zeros((5, 4)), np.full(5, 4))}, "labels"),
        ({"labelled": (np.zeros((5, 4)), np.full(5, -1))}, "labels"),
        ({"labelled": (np.zeros((5, 4)), np.zeros(5))}, "labels"),
        ({"eps": [-1.0]}, "eps"),
        ({"eps": [math.nan]}, "eps"),
        ({"block": 0}, "block"),
        ({"seed": 2**32}, "seed"),
        ({"layers": "dense7"}, "layers"),
        ({"domain": np.zeros((5, 3))}, "domain"),
        ({"domain": np.full((5, 4), np.nan)}, "domain"),
        ({"labelled": (np.zeros((5, 4)), np.zeros(4))}, "labels"),
        ({"targets": (np.zeros((5, 4)),)}, "targets"),
        ({"targets": tuple(np.zeros((2, 4, 4)) for _ in range(3))}, "trials"),
    ],
)
def test_bad_arguments(change, named):
    arguments = {
        "targets": LAW,
        "pruning": pruning.random,
        "amount": Fraction(0.5),
        "eps": [1.0],
        "trials": 5,
    } | change
    with pytest.raises(ValueError, match=named):
        engine.simulate(networks.dense((4,) * 4), **arguments)


# --- the tally


def test_a_guard_band_around_epsilon_decides_nothing():
    eps = 0.3
    values = np.float32(eps) * np.array([1 - 1e-3, 1 - 1e-5, 1, 1 + 1e-5, 1 + 1e-3], np.float32)
    trials = Trial(np.ones(5, bool), *(values,) * 6, *(np.zeros(5, int),) * 2)
    assert Tally.of([eps], range(5), trials).counts(eps) == (1, 3, 1, 0)


def test_a_broken_bracket_stops_everything():
    good, bad = np.array([1.0, 2.0], np.float32), np.array([1.0, 1.9], np.float32)
    trials = Trial(np.ones(2, bool), good, bad, *(good,) * 4, *(np.zeros(2, int),) * 2)
    with pytest.raises(BrokenInvariant, match="trial 8"):
        Tally.of([1.0], [7, 8], trials)


def fake_trials(rng, n):
    values = np.sort(np.exp(rng.normal(size=(2, n)) * 5).astype(np.float32), axis=0)
    finite = rng.random(n) < 0.9
    values[:, ~finite] = rng.choice([np.nan, np.inf], size=(2, (~finite).sum()))
    relative = np.where(rng.random(n) < 0.01, np.float32(np.inf), values[0])
    correct = rng.integers(0, 450, (2, n))
    return Trial(finite, *values, *(values[0],) * 3, relative, *correct)


def plain(record):
    """A record as tuples and lists, so that equal ones compare equal."""
    if dataclasses.is_dataclass(record):
        return tuple(plain(getattr(record, f.name)) for f in dataclasses.fields(record))
    return record.tolist() if isinstance(record, np.ndarray) else record


def test_tallies_merge_to_the_same_in_any_order_and_grouping():
    rng = np.random.default_rng(0)
    n, eps = 400, (0.5, 2.0)
    trials = fake_trials(rng, n)
    whole = Tally.of(eps, range(n), trials)
    for _ in range(50):
        cuts = np.sort(rng.choice(np.arange(1, n), 7, replace=False))
        parts = [
            Tally.of(eps, ids.tolist(), Trial(*(field[ids] for field in trials)))
            for ids in np.split(np.arange(n), cuts)
        ]
        while len(parts) > 1:
            i, j = rng.choice(len(parts), 2, replace=False)
            merged = parts[i] + parts[j]
            parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [merged]
        assert plain(parts[0]) == plain(whole)
    for e in eps:
        assert sum(whole.counts(e)) == n
    low, high = whole.gap_quantile(0.5)
    finite = (
        np.where(trials.finite, trials.lower, np.inf),
        np.where(trials.finite, trials.upper, np.inf),
    )
    assert low <= np.sort(finite[0])[n // 2 - 1] <= low * 1.01
    assert high / 1.01 <= np.sort(finite[1])[n // 2 - 1] <= high
    mean, error = whole.mean_distance()
    exact = trials.mean[trials.finite].astype(np.float64)
    assert mean == pytest.approx(exact.mean(), rel=1e-12)
    assert error == pytest.approx(stats.sem(exact), rel=1e-6)
    assert whole.mean_distance_quantile(0.5)[0] == low
    assert whole.relative_distance()[0] == math.inf
    assert whole.relative_distance_quantile(1.0) == (math.inf, math.inf)
    assert len(repr(whole)) < 300
    assert (Tally(eps) + whole).close == whole.close
    with pytest.raises(ValueError, match="eps"):
        whole + Tally((1.0,))
    with pytest.raises(ValueError, match="fixed before sampling"):
        whole.counts(0.3)


def test_limits_of_the_mean_capped_gap():
    """Gaps uniform on [0, 2], capped at 1, upper bounds a tenth larger: the mean of min(gap, 1) is
    3/4. Of 500 limits at 5 % at most 52 may miss on either side (a false alarm of 1e-6)."""
    rng = np.random.default_rng(5)

    def tally(n, lost=0):
        gaps = rng.uniform(0, 2, n + lost).astype(np.float32)
        finite = np.arange(n + lost) < n
        correct = (np.zeros(n + lost, int),) * 2
        trials = Trial(finite, gaps, np.float32(1.1) * gaps, *(gaps,) * 4, *correct)
        return Tally.of([1.0], range(n + lost), trials, cap=1.0)

    missed = np.zeros(2, int)
    for _ in range(500):
        low, high = tally(100).mean_capped_gap_limits(0.05)
        missed += (low > 0.75, high < 0.75)
    assert missed.max() <= 52
    low, high = (tally(1000) + tally(1000)).mean_capped_gap_limits(0.01)
    assert 0.70 < low < 0.75 < high < 0.83
    lost = tally(2000, lost=200).mean_capped_gap_limits(0.01)
    assert lost.low < low - 0.03 and lost.high > high + 0.005
    assert tally(0, lost=2).mean_capped_gap_limits(0.01) == (0.0, 1.0)
    with pytest.raises(ValueError, match="cap = inf"):
        Tally((1.0,), trials=3).mean_capped_gap_limits(0.01)
    with pytest.raises(ValueError, match="cap"):
        tally(3) + Tally((1.0,))


def changes(rng, n, lost=0):
    """A tally of n trials of 450 labelled inputs, of which the pruned network loses 9 on average,
    most often none; after them `lost` trials that are not finite."""
    total = n + lost
    target = np.full(total, 440)
    correct = target - 45 * (rng.random(total) < 0.2)
    finite = np.arange(total) < n
    numbers = (np.ones(total, np.float32),) * 6
    return Tally.of([1.0], range(total), Trial(finite, *numbers, target, correct), 450)


def test_limits_of_the_accuracy_s_change():
    """Of 1,000 limits at 5 % each at most 88 may miss (a false alarm of 1e-7); with 256 trials
    the two are less than 5 points of accuracy apart."""
    rng = np.random.default_rng(4)
    missed = np.zeros(2, int)
    for i in range(1000):
        low, high = changes(rng, 40).accuracy_change_limits(0.05, i)
        missed += (low > -0.02, high < -0.02)
    assert missed.max() <= 88
    low, high = changes(rng, 256).accuracy_change_limits(0.01, 0)
    assert -0.05 < low < -0.02 < high < 0.02 and high - low < 0.05
    lost = changes(rng, 256, lost=3).accuracy_change_limits(0.01, 0)
    assert lost.low < low - 0.005 and lost.high > high + 0.005
    assert changes(rng, 0, lost=1).accuracy_change_limits(0.01, 0) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="labelled = 0"):
        Tally((1.0,), trials=3).accuracy_change_limits(0.01, 0)


def test_blas_has_its_threads_back_when_the_last_of_several_runs_ends():
    threads = lambda: {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}
    before = threads()
    with threadpool_limits(2, "blas"):
        run = over_rows(trials=200)
        first, second = engine.run_blocks(run), engine.run_blocks(run)
        next(first), next(second)
        assert threads() == {1}
        list(first)
        assert threads() == {1}
        list(second)
        assert threads() == {2}
    assert threads() == before


def test_exact_sum():
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000) * 10.0 ** rng.integers(-300, 300, 1000)
    assert ExactSum.of(values).over(1) == math.fsum(values)
    assert ExactSum.of(np.array([5e-324, 1e-310])).over(1) == 5e-324 + 1e-310
    assert ExactSum.of(np.array([])).over(3) == 0
    with pytest.raises(ValueError, match="finite"):
        ExactSum.of(np.array([1.0, np.inf]))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_histogram_quantiles_bracket_the_order_statistic(p):
    rng = np.random.default_rng(0)
    values = np.concatenate([[0.0, 1e-45, 1e-40, 1e-38], np.exp(rng.normal(size=997) * 3)])
    values = values.astype(np.float32)
    histogram = Histogram.of(values)
    exact = np.sort(values)[max(1, math.ceil(p * len(values))) - 1]
    low, high = (histogram.quantile(p, len(values), above=a) for a in (False, True))
    assert low <= exact <= high
    assert high <= low * (1 + 2**-7) or exact < 1e-37
    assert histogram.quantile(1.0, len(values) + 1, above=True) == math.inf
