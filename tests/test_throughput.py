"""The programs that `benchmarks/throughput.py` times measure the same thing; nothing is timed here.

Every random test raises a false alarm in at most one of 10^6 seeds.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from scipy import stats

FALSE_ALARM = 1e-6
BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
CASES = [
    ("sampled", "random", 16, 64),
    ("sampled", "magnitude", 16, 64),
    ("conv", "random", 4, 2),
    ("conv", "magnitude", 4, 2),
    ("trial", "random", 16, 64),
    ("trial", "magnitude", 16, 64),
]


@pytest.fixture(scope="module")
def peers():
    """The package, with a sweep that takes the first choice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import peers

        patch.setattr(peers, "fastest", lambda choices, **_: next(iter(choices.items())))
        patch.setattr(peers, "batch_sizes", lambda *_: [64])
        yield peers


@pytest.fixture(scope="module")
def throughput():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import throughput

        yield throughput


def sample(peers, name, case, trials=512):
    candidate = peers.load(name).prepare(peers.Workload(*case))
    return candidate.run(-(-trials // candidate.batch) * candidate.batch, 5)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: " ".join(map(str, case)))
def engine(request, peers):
    return request.param, sample(peers, "engine", request.param)


@pytest.mark.ci
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_peer_s_gaps_have_the_engine_s_law(peers, engine, name):
    if name == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install -e '.[benchmarks]'")
    case, ours = engine
    if case[0] not in peers.load(name).WORKLOADS:
        pytest.skip(f"{name} has no {case[0]}")
    theirs = sample(peers, name, case)
    assert set(theirs) == set(ours)
    for quantity, values in theirs.items():
        if (name, quantity) == ("numpy", "upper"):
            assert np.median(values) > np.median(ours[quantity])
            continue
        level = FALSE_ALARM / len(theirs)
        assert stats.ks_2samp(values, ours[quantity]).pvalue > level, quantity
        # A test of laws does not see little: the medians must agree as before timing, too.
        assert np.median(values) == pytest.approx(np.median(ours[quantity]), rel=0.2)


def test_amounts_and_operations(peers):
    dense = peers.Workload("sampled", "magnitude", 64, 256)
    assert (dense.removed, dense.flops) == (512, 12 * 64**2 * 256)
    conv = peers.Workload("conv", "magnitude", 16, 16)
    assert (conv.removed, conv.flops) == (144, 12 * 9 * 16**2 * 256 * 16)
    assert np.linalg.norm(conv.points().reshape(16, -1), axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--widths", "7"], ["--widths", "widths = 7", "from 8 to 2048"]),
        (["--workloads", "dense"], ["--workloads", "dense", "sampled"]),
        (["--pruning", "none"], ["--pruning", "none", "random"]),
        (["--peers", "cupy"], ["--peers", "cupy", "numpy"]),
        (["--cores", "0"], ["--cores", "cores = 0", "from 1 to"]),
        (["--cores", "100000"], ["--cores", "cores = 100000", "from 1 to"]),
        (["--seconds", "nan"], ["--seconds", "seconds = nan", "finite number"]),
        (["--rounds", "1.5"], ["--rounds", "rounds = '1.5'", "from 1 to"]),
        (["--json", str(BENCHMARKS / "worker.py")], ["--json", "exists", "new path"]),
        (["--json", "/no/such/folder/x"], ["--json", "folder that exists"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(throughput, capsys, argv, words):
    with pytest.raises(SystemExit) as stopped:
        throughput.main(argv)
    assert stopped.value.code == 2
    found = capsys.readouterr()
    assert not found.out and found.err.count("\n") == 1
    assert all(word in found.err for word in words), found.err


def test_a_difference_of_more_than_5_percent_is_refused(throughput):
    ours = ("engine", 1), {"lower": 1.0, "upper": 2.0}
    throughput.check("x", dict([ours, (("numpy", 1), {"lower": 1.04, "upper": 9.0})]))
    for peer, found in (("numpy", {"lower": 1.06}), ("torch", {"upper": float("nan")})):
        with pytest.raises(throughput.Disagreement, match=peer):
            throughput.check("x", dict([ours, ((peer, 1), found)]))


class Fake:
    """A worker that runs a trial a second, the engine four."""

    def __init__(self, name, cores):
        self.speed = cores * (4.0 if name == "engine" else 1.0)

    def ask(self, what, *args):
        if what == "about":
            return {"device": "cpu", "workloads": ("sampled", "trial")}
        if what == "general":
            names = "square_product_flops copy_bytes random_bits_words jax_random_bits_words"
            return dict.fromkeys(names.split(), 1e9)
        if what == "of":
            return {}, 8.0
        if what == "prepare":
            return {"seconds": 1.0, "batch": 1, "choices": ""}
        seconds = args[0] / self.speed
        return {"trials": args[0], "wall": seconds, "cpu": seconds, "medians": {"sampled": 1.0}}

    def close(self):
        pass


def test_report_and_file_without_torch(throughput, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(throughput, "Worker", Fake)
    monkeypatch.setattr(throughput.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(throughput.report, "cores", lambda: 2)
    path = tmp_path / "out.json"
    argv = ["--workloads", "sampled", "trial", "--widths", "16", "--inputs", "64", "--rounds", "2"]
    assert throughput.main([*argv, "--cores", "1", "2", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "torch is not installed: that peer is skipped" in printed
    assert "engine over the best peer: geometric mean 4.00, least 4.00" in printed
    assert "engine: 2 cores over 1 core: geometric mean 2.00, least 2.00" in printed
    assert "50 %" in printed and "100 %" in printed
    refuse = lambda word: pytest.fail(word)
    rows = json.loads(path.read_text(), parse_constant=refuse)["rows"]
    assert len(rows) == 8 and all(len(row["rates"]["engine"]) == 2 for row in rows)
    assert {row["of_floor"] for row in rows} == {0.5, 1.0}


@pytest.mark.ci
def test_a_worker_answers_and_says_what_failed(throughput):
    found = throughput.Worker("numpy", 1)
    try:
        work = throughput.Workload("sampled", "random", 8, 2)
        assert found.ask("about")["device"] == "cpu"
        assert found.ask("prepare", work)["batch"] == 1
        assert found.ask("run", 3, 0)["trials"] == 3
        with pytest.raises(throughput.Failure, match="numpy: AttributeError"):
            found.ask("nothing")
    finally:
        found.close()
