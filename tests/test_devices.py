"""Several devices, any order, other blocks, another machine's faults: the same numbers, or refused.

Devices are those into which `--xla_force_host_platform_device_count` splits a CPU.
"""

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from scipy import stats
from stores import drop

import jaxprune as jp
from jaxprune import cli, engine
from jaxprune.engine import Store, Tally, memory, programs
from jaxprune.engine.precision import FULL, check_products
from jaxprune.engine.trial import Trial
from jaxprune.statistics import ESTIMATED
from jaxprune.studies import plan as plans
from jaxprune.studies import runs, sampling
from jaxprune.studies.replay import replay
from jaxprune.studies.verify import judged
from jaxprune.types import BrokenInvariant

SMALL = jp.UnitBall(samples=4, starts=2, steps=4)
ROWS = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
EPS = (0.5, 1.0)
SEARCH = {"samples": 4, "starts": 2, "steps": 4, "eps": list(EPS), "layers": "all"}
ONE_LAYER = {
    "network": "dense", "widths": [[4, 3]], "law": "uniform", "pruning": "random", "count": 5,
}  # fmt: skip
DENSE = ONE_LAYER | {"widths": [[4, 4, 3]], "pruning": "magnitude"}
CONVOLUTIONAL = {
    "network": "convolutional", "channels": [1, 2], "size": 3, "kernel": 2, "law": "normal",
    "pruning": "bernoulli", "sparsity": 0.5,
}  # fmt: skip


def plan_of(*experiments, trials, seed=3):
    tables = [{"title": str(i)} | SEARCH | e for i, e in enumerate(experiments)]
    return plans.parse({"seed": seed, "trials": trials, "delta": 0.2, "experiment": tables})


def in_process(code, devices, *arguments):
    """What a program prints as JSON, on a CPU split into so many devices."""
    flags = f"--xla_backend_optimization_level=1 --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PLAN = """
import json, sys
from jaxprune.engine import Store, memory
from jaxprune.statistics import ESTIMATED
from jaxprune.studies import plan as plans
from jaxprune.studies import runs, sampling
from jaxprune.studies.verify import judged

memory.MAX_CHUNK = 8
plan = plans.parse(json.loads(sys.argv[1]))
with Store.create(None, sampling.about(plan)) as store:
    sampling.sample(plan, store)
    tallies = judged(plan, store, runs.begin(plan, None))["blocks"]["tallies"]
    made = [[row[2] for row in store.rows(i)] for i in store.cases]
print(json.dumps([tallies, made]))
"""

ORDERS = """
import json, sys
import jax, numpy as np
import jaxprune as jp
from jaxprune import engine
from jaxprune.engine.store import state_hash

rows = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
run = engine.prepare(jp.dense((12, 20, 5)), jp.uniform(), jp.random, jp.Fraction(0.5),
                     layers="all", domain=rows, trials=255, block=4)
empty, rng, hashes, used = engine.empty_tally(run, [0.5, 1.0]), np.random.default_rng(1), set(), {}
for turn in range(int(sys.argv[1])):
    order = rng.permutation(run.blocks).tolist() if turn else list(run.blocks)
    found = {}
    for done, tally in engine.tally_blocks(run, empty, order):
        found[done.block] = tally
        used[done.device.id] = used.get(done.device.id, 0) + 1
    assert list(found) == order
    total = sum((found[block] for block in order), empty)
    hashes.add(state_hash([*(found[block] for block in run.blocks), total]))
print(json.dumps([sorted(hashes), used]))
"""


def check_devices(plan, counts):
    found = {n: in_process(PLAN, n, json.dumps(plan.source)) for n in counts}
    assert len({tallies for tallies, _ in found.values()}) == 1
    for devices, (_, made) in found.items():
        for names in made:
            times = collections.Counter(name.rpartition(":")[2] for name in names)
            assert set(times) == {str(i) for i in range(devices)}
            assert max(times.values()) - min(times.values()) <= 1


@pytest.mark.ci
def test_a_plan_counts_alike_on_one_and_on_more_devices():
    """13 blocks, dealt by turns, the last one with 4 trials of 8."""
    check_devices(plan_of(ONE_LAYER, trials=100), (1, 3))


@pytest.mark.slow
def test_plans_count_alike_on_up_to_eight_devices():
    check_devices(plan_of(ONE_LAYER, DENSE, CONVOLUTIONAL, trials=100), (1, 2, 3, 4, 8))


@pytest.mark.parametrize(
    ("counts", "orders"),
    [
        pytest.param((1, 3), 4, marks=pytest.mark.ci),
        pytest.param((1, 2, 3, 4, 8), 20, marks=pytest.mark.slow),
    ],
)
def test_blocks_in_any_order_on_up_to_eight_devices_count_alike(counts, orders):
    """Orders of 64 blocks each, over rows."""
    found = {n: in_process(ORDERS, n, str(orders)) for n in counts}
    (one,) = {tuple(hashes) for hashes, _ in found.values()}
    assert len(one) == 1
    for devices, (_, used) in found.items():
        assert len(used) == devices and sum(used.values()) == orders * 64


# --- blocks

OVER = pytest.mark.parametrize(
    "domain", [pytest.param(SMALL, id="ball", marks=pytest.mark.ci), pytest.param(ROWS, id="rows")]
)


@pytest.fixture
def compiled(monkeypatch):
    """The programs that were compiled since."""
    kept = collections.OrderedDict()
    monkeypatch.setattr(programs, "_programs", kept)
    return kept


def gather(run):
    blocks = [done.trials for done in engine.run_blocks(run)]
    return Trial(*(np.concatenate(field) for field in zip(*blocks, strict=True)))


@OVER
def test_a_last_block_is_padded_and_cut_by_the_same_program(domain, compiled):
    """1, B - 1, B, B + 1 and 7 B + 3 trials are the first ones of as many blocks, to the bit."""
    block, network = 8, jp.dense((12, 3))
    arguments = network, jp.uniform(), jp.random, jp.Fraction(0.5)
    prepared = lambda b: engine.prepare(*arguments, trials=64, layers="all", domain=domain, block=b)
    whole = gather(prepared(block))
    each = gather(prepared(1))
    for a, b in zip(each, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=engine.GUARD / 10)
    programs_of_both = len(compiled)
    assert programs_of_both == (4 if domain is SMALL else 2)
    for trials in (1, block - 1, block, block + 1, 7 * block + 3):
        run = prepared(block)._replace(trials=trials)
        for a, b in zip(gather(run), whole, strict=True):
            np.testing.assert_array_equal(a, b[:trials])
        counts = [engine.tally_run(run, EPS).counts(e) for e in EPS]
        cut = Tally.of(EPS, range(trials), Trial(*(field[:trials] for field in whole)))
        assert counts == [cut.counts(e) for e in EPS]
    assert len(compiled) == programs_of_both


def resident():
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.ci
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_two_thousand_blocks_leak_nothing(tmp_path, compiled):
    run = engine.prepare(
        jp.dense((12, 3)), jp.uniform(), jp.random, jp.Fraction(0.5), layers="all", domain=ROWS,
        trials=4_400, block=2,
    )  # fmt: skip
    empty = engine.empty_tally(run, EPS)
    with Store.create(tmp_path / "run.db", {"test": 1}) as store:
        store.begin(0, run, empty)
        for turn, (done, tally) in enumerate(engine.tally_blocks(run, empty)):
            store.add(0, done.block, tally, "here", 0.0)
            if turn == 200:
                before = resident()
        assert resident() - before < 20 * 2**20
        assert len(store.blocks(0)) == 2200 and len(compiled) == 1


@pytest.mark.parametrize(
    "domain",
    [
        pytest.param(SMALL, id="ball", marks=pytest.mark.ci),
        pytest.param(ROWS, id="rows", marks=pytest.mark.slow),
    ],
)
def test_blocks_are_halved_until_the_compiler_says_they_fit(domain):
    run = engine.prepare(
        jp.dense((12, 3)), jp.uniform(), jp.random, jp.Fraction(0.5), layers="all", domain=domain,
        trials=64, block=64,
    )._replace(in_flight=2)  # fmt: skip
    assert engine.fitted(run) == run
    limit = programs.compiled_block(run).bytes - 1
    with memory.limited(limit):
        fitted = engine.fitted(run)
        assert fitted.in_flight == 1 and fitted.chunk < 64
        assert fitted.block == (fitted.chunk if domain is SMALL else 64)
        assert programs.compiled_block(fitted).bytes <= limit
        double = run._replace(chunk=2 * fitted.chunk, in_flight=1)
        double = double._replace(block=double.chunk) if domain is SMALL else double
        assert programs.compiled_block(double).bytes > limit
        with pytest.raises(ValueError, match=r"a block of \d+ trials as begun needs"):
            engine.fitted(double._replace(in_flight=2), begun=True)
    begun = engine.fitted(run, begun=True)
    assert (begun.block, begun.chunk) == (run.block, run.chunk)
    with memory.limited(programs.compiled_block(run).bytes):
        begun = engine.fitted(run, begun=True)
        assert (begun.block, begun.chunk, begun.in_flight) == (run.block, run.chunk, 1)
    with (
        memory.limited(1000),
        pytest.raises(ValueError, match=r"dense 12-3, relu: a trial needs"),
    ):
        engine.fitted(fitted._replace(chunk=1, block=1))


def test_counts_are_integers_that_float32_would_not_hold():
    """2^24 + 3 trials, all but three close at 0.5; programs sum over no trials."""
    piece, ones = 2**16, np.ones(2**16, np.float32)
    trials = lambda n, x: Trial(np.ones(n, bool), *(x * ones[:n],) * 6, *(np.ones(n, int),) * 2)
    large = Tally.of(EPS, range(piece), trials(piece, 0.1))
    total = sum([large] * 256, Tally(EPS)) + Tally.of(EPS, range(3), trials(3, 0.75))
    assert total.trials == 2**24 + 3 and np.float32(2**24) + np.float32(1) == 2**24
    assert total.counts(0.5) == (2**24, 0, 3, 0) and total.counts(1.0) == (2**24 + 3, 0, 0, 0)
    assert total.target_correct == 2**24 + 3
    for count in (total.trials, *total.close, *total.far, total.nonfinite, total.target_correct):
        assert type(count) is int
    run = engine.prepare(
        jp.dense((12, 3)), jp.uniform(), jp.random, jp.Fraction(0.5), layers="all", domain=ROWS,
        trials=64, block=7,
    )  # fmt: skip
    word = jax.ShapeDtypeStruct((7,), jnp.uint32)
    out = programs._block_over_rows.eval_shape(run.design, run.chunk, run.numbers, word, word)
    assert {leaf.shape for leaf in out} == {(7,)}


# --- precision

CASES = {
    "dense": (jp.dense((4, 5, 3)), SMALL),
    "convolutional": (jp.convolutional((1, 2), 3, 2), SMALL),
    "cube": (jp.dense((4, 3)), jp.LinfBall(0.5, samples=4, starts=2, steps=2)),
    "rows": (jp.dense((12, 3)), ROWS),
    "deep, rows": (jp.dense((12, 20, 16, 5)), ROWS),
}


@pytest.fixture(
    params=[name if name == "rows" else pytest.param(name, marks=pytest.mark.ci) for name in CASES],
    scope="module",
)
def case(request):
    network, domain = CASES[request.param]
    return engine.prepare(
        network, jp.uniform(2.0), jp.random, jp.Fraction(0.5), layers="all", domain=domain,
        trials=64, block=8, seed=5,
    )  # fmt: skip


def lowered(run):
    """StableHLO of a block's program with products, as the engine lowers it."""
    word = jax.ShapeDtypeStruct((run.block,), jnp.uint32)
    if run.design.ball is None:
        whole = run.design, run.chunk, run.numbers, word, word
        return programs._block_over_rows.lower(*whole).as_text()
    pairs = programs._draw_block.eval_shape(run.design, run.numbers, word, word)
    measured = run.design.network, run.design.ball, pairs
    return programs._measure_block.lower(*measured).as_text()


def test_products_are_in_full_precision(case):
    with jax.default_matmul_precision(FULL):
        assert check_products(lowered(case)) > 0


@pytest.mark.parametrize(
    ("kind", "options", "passes"),
    [
        (jnp.float32, {}, False),
        (jnp.float32, {"precision": "high"}, False),
        (jnp.float32, {"precision": ("highest", "default")}, False),
        (jnp.float32, {"precision": "highest"}, True),
        (jnp.bfloat16, {}, False),
        (jnp.bfloat16, {"precision": "highest"}, False),
        (jnp.float16, {"precision": "highest"}, False),
        (jnp.int32, {}, True),
        (jnp.float32, {"preferred_element_type": jnp.float64}, False),
        (jnp.float64, {}, True),
        (jnp.complex64, {}, False),
    ],
)
def test_less_than_full_precision_is_seen(kind, options, passes):
    convolve = lambda a, b: jax.lax.conv_general_dilated(
        a[None, None], b[None, None], (1, 1), "SAME", **options
    )
    for function in (lambda a, b: jnp.matmul(a, b, **options), convolve):
        with jax.enable_x64(True):
            square = jax.ShapeDtypeStruct((4, 4), kind)
            text = jax.jit(function).lower(square, square).as_text()
        if passes:
            assert check_products(text) == 1
        else:
            with pytest.raises(BrokenInvariant, match="below float32"):
                check_products(text)


# --- audit and replay

TRIALS, BLOCK = 2400, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 300 blocks, its plan beside it."""
    path = tmp_path_factory.mktemp("run")
    plan = plan_of(ONE_LAYER, trials=TRIALS)
    with (
        pytest.MonkeyPatch.context() as patch,
        Store.create(path / "run.db", sampling.about(plan)) as store,
    ):
        patch.setattr(memory, "MAX_CHUNK", BLOCK)
        sampling.sample(plan, store)
    return path


@pytest.fixture
def store(folder, tmp_path):
    """A copy of it that may be spoilt."""
    copy = tmp_path / "run.db"
    copy.write_bytes((folder / "run.db").read_bytes())
    with Store.open(copy, write=True) as store:
        yield store


def tallies_hash(plan, store):
    return judged(plan, store, runs.begin(plan, None))["blocks"]["tallies"]


def spoil(store, blocks, device="elsewhere cpu:7"):
    """As if a bad device had made them: one trial moved from between to close."""
    for block in blocks:
        tally = store.get(0, block)
        close = (tally.close[0], tally.close[1] - 1) if tally.close[1] else (0, 1)
        spoilt = Tally(**{**vars(tally), "close": close})
        drop(store, 0, {block})
        store.add(0, block, spoilt, device, 0.0)


def test_a_clean_run_passes_its_audit(store):
    plan, _ = sampling.reopened(store)
    for share, count in ((0.0, sampling.LEAST_AUDIT), (0.01, sampling.LEAST_AUDIT), (0.2, 60)):
        assert sampling.audit(plan, store, share) == count
    assert len(store.blocks(0)) == TRIALS // BLOCK
    for share in (-1.0, 1.5):
        with pytest.raises(ValueError, match="audit"):
            sampling.audit(plan, store, share)


def test_a_bad_device_s_blocks_are_found_dropped_and_made_anew(store):
    plan, _ = sampling.reopened(store)
    before = tallies_hash(plan, store)
    bad = np.random.default_rng(2).choice(TRIALS // BLOCK, TRIALS // BLOCK // 10, replace=False)
    spoil(store, bad.tolist())
    assert tallies_hash(plan, store) != before
    with pytest.raises(BrokenInvariant, match=r"elsewhere cpu:7 came out other.*its 30 blocks"):
        sampling.audit(plan, store, 0.01)
    assert "elsewhere cpu:7" in store.failed_audit and not store.audited
    with Store.create(None, store.about) as few:
        few.void("here", "a failure")
        assert sampling.audit(plan, few, 0.0) == 0 and few.failed_audit == "a failure"
    assert set(range(TRIALS // BLOCK)) - set(store.blocks(0)) == set(bad.tolist())
    sampling.sample(plan, store)
    assert tallies_hash(plan, store) == before
    # The other device may have erred: nothing holds before an audit has passed.
    verdicts = lambda: {c["verdict"] for c in judged(plan, store, runs.find(plan, None))["cells"]}
    assert verdicts() == {ESTIMATED}
    assert sampling.audit(plan, store, 1.0) == store.audited == TRIALS // BLOCK
    assert store.failed_audit is None and ESTIMATED not in verdicts()


def test_a_block_whose_bracket_breaks_when_it_is_run_again_fails_the_audit(store, monkeypatch):
    plan, _ = sampling.reopened(store)

    def broken(*_):
        raise BrokenInvariant("trial 0: lower 2 > upper 1")

    monkeypatch.setattr(sampling.Tally, "of", broken)
    with pytest.raises(BrokenInvariant, match="came out otherwise"):
        sampling.audit(plan, store, 0.0)
    assert store.failed_audit and not store.blocks(0)


@pytest.mark.ci
def test_an_audit_is_answered_unasked_and_until_then_no_file_has_a_verdict(
    folder, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    with Store.open(run / "run.db", write=True) as store:
        spoil(store, range(0, 300, 3))
    verdicts = lambda: {
        cell["verdict"] for cell in json.loads((run / "result.json").read_text())["cells"]
    }
    assert cli.main(["resume", str(run), "--audit", "0"]) == 4 and verdicts() == {ESTIMATED}
    assert "came out otherwise" in capsys.readouterr().err
    assert cli.main(["resume", str(run), "--seconds", "1e-9"]) == 0 and verdicts() == {ESTIMATED}
    assert cli.main(["resume", str(run)]) == 0 and ESTIMATED not in verdicts()
    result = json.loads((run / "result.json").read_text())
    assert result["blocks"]["complete"] and result["blocks"]["audited"] >= sampling.LEAST_AUDIT
    with Store.open(run / "run.db") as store, Store.create(None, store.about) as merged:
        merged.take(store)
        assert merged.audited == store.audited


def test_one_bad_block_in_ten_is_found_in_ninety_five_audits_of_a_hundred(store, monkeypatch):
    """200 audits of 30 of 300 blocks: each finds with probability above .958; false alarm 1e-6."""
    plan, _ = sampling.reopened(store)
    clean = {block: tally for block, tally, _, _ in store.rows(0)}
    bad = set()

    def again(run, blocks, devices=None):
        for block in blocks:
            yield engine.Done(block, run.ids(block), None, jax.local_devices()[0])

    run = sampling.ready(plan, store, 0, {})
    monkeypatch.setattr(sampling, "ready", lambda *_: run)
    monkeypatch.setattr(engine, "run_blocks", again)
    monkeypatch.setattr(sampling, "is_as_kept", lambda *given: given[2].block not in bad)
    monkeypatch.setattr(store, "void", lambda device, failure: 0)
    rng, missed = np.random.default_rng(3), 0
    for _ in range(200):
        bad = set(rng.choice(len(clean), len(clean) // 10, replace=False).tolist())
        try:
            sampling.audit(plan, store, 0.01)
            missed += 1
        except BrokenInvariant:
            pass
    assert missed <= stats.binom.isf(1e-6, 200, 0.9**30)


def test_replay_finds_what_is_kept(store):
    plan, _ = sampling.reopened(store)
    (case,) = plan.cases
    tally = sum((tally for _, tally, _, _ in store.rows(0)), store.empty(0))
    root = jax.random.fold_in(jax.random.key(plan.seed, impl="threefry2x32"), 1)
    for gap, trial in tally.worst:
        found = replay(plan, store, trial)
        assert found.facts["lower"] == gap and found.facts["same"] is True
        assert found.facts["differs"] == [] and found.facts["trial"] == trial

        def bits(purpose, trial=trial):
            key = root
            for word in (purpose, 0, 0, trial):
                key = jax.random.fold_in(key, word)
            return np.asarray(jax.random.bits(key, (3, 4))).astype(np.int64)

        (w,), (mask,) = found.weights.values(), found.masks.values()
        u = ((bits(0) & 0x7FFFFFFF) + 0.5) / 2.0**31
        expected = np.where(bits(0) >> 31 == 1, -u, u) * case.targets.scale(4, 3)
        np.testing.assert_allclose(w, expected, rtol=1e-6)
        removed = np.argsort((bits(1) >> 2).ravel(), kind="stable")[:5]
        np.testing.assert_array_equal(np.flatnonzero(~mask), np.sort(removed))
        # No point of the ball is further than the largest singular value of what is removed.
        exact = np.linalg.norm(np.where(mask, 0.0, w.astype(np.float64)), 2)
        assert 0.9 * exact <= gap <= exact * (1 + 1e-5)
    _, worst = tally.worst[0]
    spoil(store, [worst // BLOCK])
    assert replay(plan, store, worst).facts["same"] is False
    drop(store, 0, {worst // BLOCK})
    assert replay(plan, store, worst).facts["same"] is None
    with pytest.raises(ValueError, match="trial = 2400"):
        replay(plan, store, TRIALS)


def test_replay_saves_weights_and_masks(folder, tmp_path, capsys):
    odd, trial = tmp_path / os.fsdecode(b"\xff"), 1234  # a name that is no UTF-8
    odd.mkdir()
    file = odd / "pair.safetensors"
    assert cli.main(["replay", str(folder), "--trial", str(trial), "--save", str(file)]) == 0
    assert str(trial) in capsys.readouterr().out
    with Store.open(folder / "run.db") as store:
        plan, _ = sampling.reopened(store)
        found = replay(plan, store, trial)
    with safe_open(shutil.copy(file, tmp_path), "numpy") as tensors:
        assert set(tensors.keys()) == {"dense1.weight", "dense1.mask"}
        w, mask = tensors.get_tensor("dense1.weight"), tensors.get_tensor("dense1.mask")
        facts = json.loads(tensors.metadata()["jaxprune"])
    assert w.dtype == np.float32 and mask.dtype == bool and mask.sum() == 12 - 5
    np.testing.assert_array_equal(w, found.weights["dense1"])
    np.testing.assert_array_equal(mask, found.masks["dense1"])
    assert facts == found.facts | {"run": facts["run"]}
    assert facts["layers"] == [{"layer": "dense1", "weights": 12, "removed": 5}]
    assert cli.main(["replay", str(folder), "--trial", "1", "--save", str(file)]) == 2
