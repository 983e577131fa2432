"""Plans: what they expand to, and every way to get them wrong."""

import copy
import math
import os
import tomllib
from importlib import resources

import pytest

from jaxprune import laws, networks, pruning
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.studies import plan as plans
from jaxprune.studies.plan import experiments

FULL_PLAN = "6e6124b5648ca173276b4be07d5a5c3bb197797569135a982fb4703961e70640"
"""Of version 0.1.0's default plan: its counts can be compared for as long as it does not change."""

SMALL = {
    "title": "small",
    "seed": 3,
    "delta": 0.2,
    "confidence": 0.9,
    "trials": 40,
    "experiment": [
        {
            "title": "dense",
            "network": "dense",
            "widths": [[4, 5, 5, 3], [4, 6, 6, 3]],
            "law": "uniform",
            "gain": 2.0,
            "pruning": ["magnitude", "random"],
            "alpha": [0.25, 0.5],
            "eps": ["theorem", 0.5],
        },
        {
            "title": "convolutional",
            "network": "convolutional",
            "channels": [2, 3, 3, 2],
            "size": 5,
            "padding": "VALID",
            "kernel": 2,
            "strides": [1, 2, 1],
            "outputs": 4,
            "activation": "leaky_relu",
            "slope": 0.3,
            "law": "normal",
            "scaling": "glorot",
            "pruning": "bernoulli",
            "sparsity": 0.5,
            "count": 3,
            "layers": ["conv1", "dense4"],
            "samples": 8,
            "starts": 2,
            "steps": 1,
            "trials": 7,
            "eps": 1.0,
        },
    ],
}


def test_a_plan_stands_for_every_combination():
    plan = plans.parse(SMALL)
    dense, conv = plan.cases[:-2], plan.cases[-2:]
    assert (plan.seed, plan.delta, plan.confidence) == (3, 0.2, 0.9)
    assert len(dense) == 2 * 2 * 2
    assert {(c.network.widths, c.pruning.name, str(c.amount)) for c in dense} == {
        (widths, name, amount)
        for widths in ((4, 5, 5, 3), (4, 6, 6, 3))
        for name in ("magnitude", "random")
        for amount in ("D^0.75", "D^0.5")
    }
    for case in dense:
        assert case.layers == ("dense2",) and case.trials == 40
        assert case.targets == laws.uniform(2.0)
        (certified, source), asked = case.eps
        assert source == "theorem" and certified == case.certificate.eps > 0
        assert asked == (0.5, "asked")
    assert [c.amount for c in conv] == [pruning.Fraction(0.5), pruning.Count(3)]
    for case in conv:
        assert case.layers == ("conv1", "dense4") and case.trials == 7
        assert case.network == networks.convolutional(
            (2, 3, 3, 2),
            5,
            2,
            strides=(1, 2, 1),
            padding="VALID",
            outputs=4,
            activation=case.network.activation,
        )
        assert str(case.network.activation) == "leaky_relu(0.3)"
        assert case.targets == laws.normal(scaling="glorot")
        assert (case.ball.samples, case.ball.starts, case.ball.steps) == (8, 2, 1)


@pytest.fixture(scope="module")
def first():
    return plans.load()


def test_the_first_plan_asks_of_three_theorems_and_a_trained_network(first):
    titles = " ".join({case.title for case in first.cases})
    for words in ("Theorem 1", "Theorem 2", "Theorem 3", "Trained"):
        assert words in titles
    assert plans.load("first").hash == first.hash != plans.load(trials=9).hash
    dense = {case.network for case in first.cases if case.network.is_dense}
    assert len(dense) == 1  # one bracket to compile
    for case in first.cases:
        assert len(case.eps) == 2
        certified = [eps for eps, source in case.eps if source == "theorem"]
        assert certified == ([case.certificate.eps] if case.certificate else [])


def test_the_first_plan_has_trials_enough_to_decide(first):
    """Every claim holds if all its trials are close, and is violated if all are far."""
    claims = sum(len(case.eps) for case in first.cases)
    for case in first.cases:
        assert (1 - first.delta) ** case.trials <= (1 - first.confidence) / claims


@pytest.mark.ci  # its certificates take 10 s
def test_the_full_plan_asks_the_papers_questions():
    plan = plans.load("full")
    assert plan.hash == FULL_PLAN
    titles = " ".join({case.title for case in plan.cases})
    for words in ("Theorem 1", "Theorem 2", "Theorem 3", "Gaussian", "Trained", "test images"):
        assert words in titles
    dense = [c for c in plan.cases if c.title.startswith("Theorem 1")]
    assert {c.network.widths[1] for c in dense} == {16, 32, 64, 128, 256}
    assert {c.amount.alpha for c in dense} == {0.25, 0.5}
    for case in dense:
        (certified, _), (asked, _) = case.eps
        assert math.isfinite(certified) and asked > 0


def test_the_hash_names_the_plan():
    assert plans.parse(SMALL).hash == plans.parse(copy.deepcopy(SMALL)).hash
    others = [plans.parse(SMALL, trials=8), plans.parse(SMALL, seed=4)]
    others.append(plans.parse({**SMALL, "delta": 0.1}))
    assert len({plan.hash for plan in [plans.parse(SMALL), *others]}) == 4


def test_the_command_line_overrides_every_number_of_trials():
    plan = plans.parse(SMALL, trials=9, seed=11)
    assert {case.trials for case in plan.cases} == {9} and plan.seed == 11


def changed(where, key, value):
    plan = copy.deepcopy(SMALL)
    target = plan if where is None else plan["experiment"][where]
    if value is None:
        del target[key]
    else:
        target[key] = value
    return plan


@pytest.mark.parametrize(
    ("where", "key", "value", "named"),
    [
        (None, "sed", 1, "did you mean 'seed'"),
        (None, "seed", -1, "seed"),
        (None, "seed", 2**32, "seed"),
        (None, "seed", 1.5, "seed"),
        (None, "seed", True, "seed"),
        (None, "delta", 0.0, "delta"),
        (None, "delta", 1.0, "delta"),
        (None, "delta", float("nan"), "delta"),
        (None, "delta", "small", "delta"),
        (None, "confidence", 1, "confidence"),
        (None, "trials", 0, "trials"),
        (None, "title", "", "title"),
        (None, "experiment", None, "experiment"),
        (None, "experiment", [], "experiment"),
        (0, "title", None, "title"),
        (0, "width", [4, 4], "did you mean 'widths'"),
        (0, "network", "densse", "did you mean 'dense'"),
        (0, "widths", None, "widths"),
        (0, "widths", [4, -4, 4], "width"),
        (0, "widths", [4, 0, 4], "width"),
        (0, "widths", [[4, 4, 4], 5], "widths"),
        (0, "widths", 7, "widths"),
        (0, "widths", [4, 2**40, 4], "width"),
        (0, "alpha", [], "list"),
        (0, "alpha", 0.0, "alpha"),
        (0, "alpha", 1.0, "alpha"),
        (0, "alpha", -0.5, "alpha"),
        (0, "alpha", None, "amount"),
        (0, "eps", 0.0, "eps"),
        (0, "eps", -1.0, "eps"),
        (0, "eps", float("inf"), "eps"),
        (0, "eps", "theorm", "eps"),
        (0, "eps", None, "eps"),
        (0, "law", None, "law"),
        (0, "law", "cauchy", "law"),
        (0, "gain", 0.0, "gain"),
        (0, "scaling", "xavier", "scaling"),
        (0, "pruning", "magnitud", "did you mean 'magnitude'"),
        (0, "pruning", 7, "pruning"),
        (0, "layers", "last", "layers"),
        (0, "layers", 5, "layers"),
        (0, "layers", ["dense9"], "layers"),
        (0, "layers", [], "layers"),
        (0, "domain", "test images", "domain"),
        (0, "domain", "linf ball", "no theorem"),
        (0, "radius", 0.1, "radius"),
        (1, "output", "l1", "output"),
        (0, "slope", 0.1, "slope"),
        (0, "kernel", 3, "kernel"),
        (0, "training", {"steps": 3}, "training"),
        (0, "activation", "gelu", "activation"),
        (0, "trials", 2**60, "trials"),
        (0, "data", "mnist", "data"),
        (1, "widths", [3, 3], "widths"),
        (1, "sparsity", 1.5, "sparsity"),
        (1, "sparsity", -0.1, "sparsity"),
        (1, "count", 10**6, "count"),
        (1, "size", None, "size"),
        (1, "size", -3, "size"),
        (1, "kernel", 9, "kernel"),
        (1, "padding", "FULL", "padding"),
        (1, "strides", [1, 1], "strides"),
        (1, "strides", 1.5, "stride"),
        (1, "slope", 2.0, "slope"),
        (1, "samples", 0, "samples"),
        (1, "starts", 100, "starts"),
    ],
)
def test_bad_plans(where, key, value, named):
    with pytest.raises(ValueError) as caught:
        plans.parse(changed(where, key, value))
    message = str(caught.value)
    assert named in message and "\n" not in message
    if where is not None:
        assert message.startswith(f"experiment {where + 1}: ")


def test_a_theorem_about_nothing_is_refused():
    source = changed(0, "alpha", None)
    source["experiment"][0]["sparsity"] = 0.0
    with pytest.raises(ValueError, match="removes nothing"):
        plans.parse(source)


def test_a_linf_ball_and_its_options():
    source = changed(0, "eps", [0.5])
    source["experiment"][0] |= {"domain": ["unit ball", "linf ball"], "radius": 0.1, "output": "l1"}
    cases = [c for c in plans.parse(source).cases if c.title == source["experiment"][0]["title"]]
    assert {c.domain for c in cases} == {"unit ball", "linf ball"}
    for case in cases:
        if case.domain == "unit ball":
            assert isinstance(case.ball, UnitBall) and case.certificate.eps > 0
        else:
            assert case.ball == LinfBall(0.1, "l1") and case.certificate is None
    for key, value in (("radius", 0.0), ("output", "l0"), ("steps", -1)):
        experiment = {**source["experiment"][0], key: value}
        with pytest.raises(ValueError, match=key):
            plans.parse({**source, "experiment": [experiment]})


def test_training_keys():
    source = copy.deepcopy(SMALL)
    source["experiment"] = [
        {
            "title": "trained",
            "network": "dense",
            "widths": [64, 8, 8, 10],
            "data": "digits",
            "training": {"steps": 5, "batch": 4, "learning_rate": 0.1},
            "pruning": "random",
            "sparsity": 0.5,
            "domain": ["unit ball", "test images"],
            "eps": 1.0,
        }
    ]
    cases = plans.parse(source).cases
    assert [case.domain for case in cases] == ["unit ball", "test images"]
    assert {case.targets.steps for case in cases} == {5}
    for training, named in (
        ({"step": 5}, "did you mean 'steps'"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        (5, "training"),
    ):
        source["experiment"][0]["training"] = training
        with pytest.raises(ValueError, match=named):
            plans.parse(source)
    source["experiment"][0]["training"] = {}
    for key, value in (("law", "normal"), ("eps", "theorem"), ("widths", [63, 8, 8, 10])):
        with pytest.raises(ValueError, match=key):
            plans.parse({**source, "experiment": [{**source["experiment"][0], key: value}]})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"seed = ", "TOML"),
        (b"seed = 1\nseed = 2", "TOML"),
        (b"\xff\xfe", "UTF-8"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "TOML"),
        (b"seed = " + b"9" * 5000, "TOML"),
        (b"#" * (plans.MAX_PLAN_BYTES + 1), "bytes"),
    ],
)
def test_bad_files(tmp_path, content, named):
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named) as caught:
        plans.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_file_without_an_end_is_refused(tmp_path, make):
    make(tmp_path / "plan.toml")
    with pytest.raises(ValueError, match=r"plan.toml': no regular file"):
        plans.load(tmp_path / "plan.toml")


LARGE = {
    "400000 cases": {"alpha": [0.5] * 100_000},
    "22000 claims": {"eps": [1.0] * 2750},
    "40008 layers": {"widths": [[4] * 5002] * 2},
    "30000 layers": {"widths": [[4, 4, 4, 4]] * 2500},
    "number of epsilons = 1001": {"eps": [1.0] * 1001, "alpha": [0.5], "pruning": "random"},
    "layers = 300": {"widths": [4] * 301},
}


@pytest.mark.parametrize("named", LARGE)
def test_the_size_of_a_plan_is_counted_before_anything_is_certified(monkeypatch, named):
    monkeypatch.setattr("jaxprune.bounds.certify", lambda *_, **__: pytest.fail("certified"))
    source = copy.deepcopy(SMALL)
    source["experiment"] = [source["experiment"][0] | LARGE[named]]
    with pytest.raises(ValueError, match=named) as refusal:
        plans.parse(source)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200


@pytest.mark.parametrize("case", [0, 1])
def test_the_size_of_a_plan_is_that_of_its_cases(case):
    experiment = SMALL["experiment"][case]
    cases = plans.parse(SMALL | {"experiment": [experiment]}).cases
    claims, layers = sum(len(c.eps) for c in cases), sum(len(c.network.layers) for c in cases)
    assert experiments.size(experiment) == (len(cases), claims, layers)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        plans.load(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"plan = 'ful': .*; the bundled plans are first and full"):
        plans.load("ful")


@pytest.mark.parametrize("name", plans.BUNDLED)
def test_the_bundled_plans_are_in_the_documented_keys(name):
    path = resources.files("jaxprune.studies").joinpath("plans", f"{name}.toml")
    source = tomllib.loads(path.read_text("utf-8"))
    assert set(source) <= set(plans.PLAN_KEYS)
    used = {key for experiment in source["experiment"] for key in experiment}
    assert used <= set(plans.EXPERIMENT_KEYS)
