"""Plans: what is sampled and what is claimed, written down before any of it is looked at.

A plan is a TOML file. Its top level holds the keys in `PLAN_KEYS`; each
`[[experiment]]` is a table of the keys in `EXPERIMENT_KEYS`, and stands for every combination of
its networks, prunings, amounts and domains. `default.toml` beside this file shows them all.
"""

import dataclasses
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jaxprune import activations, bits, bounds, laws, networks, pruning, validation
from jaxprune.engine import keys
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount, Pruning
from jaxprune.statistics import CORRECTIONS, E_BH, HOLM
from jaxprune.studies import trained
from jaxprune.studies.result import sha256
from jaxprune.studies.trained import Recipe

THEOREM = "theorem"
UNIT_BALL = "unit ball"
LINF_BALL = "linf ball"
TEST_IMAGES = "test images"
MAX_PLAN_BYTES = 2**20
MAX_CASES = 10_000

PLAN_KEYS = {
    "title": "heading of the report",
    "seed": "of all random keys, below 2^32 (0)",
    "delta": "the claims are P(gap <= eps) >= 1 - delta (0.05)",
    "confidence": "of each limit, and of the verdicts together (0.99)",
    "trials": "pairs in every simulation (1000)",
    "until_decided": "true: a simulation ends once its claims are decided; trials are its budget",
    "correction": "for the number of claims: holm, no verdict is wrong; or, with until_decided, "
    "e-bh, few of the verdicts are wrong: a share of 1 - confidence in the mean (holm)",
    "stream": "of random bits: threefry-20, jax.random's, or threefry-13, faster (threefry-20)",
    "runs": "for how many seeds the plan is; they share 1 - confidence (1)",
    "experiment": "tables, one for every combination of the lists in it, with the keys below",
}
EXPERIMENT_KEYS = {
    "title": "heading in the table",
    "network": "dense or convolutional",
    "widths": "dense: widths, input to output; a list, or a list of lists, one a network",
    "channels": "convolutional: channels, input to last convolution; likewise",
    "size": "convolutional: side of the input image",
    "kernel": "convolutional: side of the kernels (3)",
    "strides": "convolutional: one number, or one a convolution (1)",
    "padding": "convolutional: SAME, VALID or CIRCULAR (SAME)",
    "outputs": "convolutional: width of a dense read-out (none)",
    "activation": "relu, leaky_relu, tanh, erf or identity (relu)",
    "slope": "leaky_relu: slope below 0, from 0 to 1 (0.01)",
    "law": "uniform or normal weights",
    "scaling": "max (the paper's), he, glorot or lecun (max)",
    "gain": "factor on the weights, the paper's K under max (1)",
    "data": "digits: targets are trained on them instead of sampled from a law",
    "training": "data: a table of steps, batch, learning_rate, weight_decay",
    "pruning": "magnitude, random or bernoulli; one or a list",
    "alpha": "amounts: floor(D^(1 - alpha)) of each pruned layer's D weights; one or a list",
    "sparsity": "amounts: this fraction of each pruned layer; joins alpha and count if given",
    "count": "amounts: this many weights of each pruned layer",
    "layers": "middle, all, or a list of names such as dense2 (middle)",
    "domain": f"{UNIT_BALL}, {LINF_BALL}, or {TEST_IMAGES} with data; one or a list ({UNIT_BALL})",
    "radius": f"{LINF_BALL}: of each feature (1)",
    "output": f"{LINF_BALL}: norm of the outputs, linf, l1 or l2 (linf)",
    "samples": "balls: random inputs a trial (64)",
    "starts": "balls: the best inputs, which start an ascent (8)",
    "steps": "balls: steps of the ascent at most (unit ball 40, linf ball 10)",
    "trials": "independent pairs; with data, that many trained networks (the plan's)",
    "eps": f'numbers, or "{THEOREM}" for the certified one; one or a list',
}


@dataclass(frozen=True)
class Case:
    """One simulation of a plan, and the epsilons at which it is judged.

    Attributes:
      title: of its experiment.
      network: the architecture.
      targets: the law of sampled targets, or the recipe of trained ones.
      pruning: the method.
      amount: of each pruned layer.
      pruned: one Boolean a layer.
      domain: `UNIT_BALL`, `LINF_BALL` or `TEST_IMAGES`.
      ball: over which the gap is bracketed, unless it is taken over the test images.
      trials: independent pairs.
      certificate: the explicit theorem at the plan's delta; None for trained targets, and for
        another ball than the unit ball.
      eps: `(epsilon, "theorem" or "asked")`, fixed before sampling.
    """

    title: str
    network: Network
    targets: Law | Recipe
    pruning: Pruning
    amount: Amount
    pruned: tuple[bool, ...]
    domain: str
    ball: UnitBall | LinfBall
    trials: int
    certificate: bounds.Certificate | None
    eps: tuple[tuple[float, str], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the pruned layers."""
        return tuple(itertools.compress(self.network.names, self.pruned))

    @property
    def sparsities(self) -> tuple[float, ...]:
        """(Expected) fraction removed from each layer."""
        return tuple(
            self.pruning.removed(self.amount, count) / count if chosen else 0.0
            for count, chosen in zip(self.network.weight_counts, self.pruned, strict=True)
        )

    def __str__(self):
        return f"{self.network}: {self.pruning}, {self.amount}"


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before sampling.

    Attributes:
      title: heading of the report.
      seed: of all random keys.
      delta: the claim is P(gap <= eps) >= 1 - delta.
      confidence: of every limit and of the verdicts together.
      until_decided: whether a case's sampling ends once its claims are decided.
      correction: `statistics.HOLM` or `statistics.E_BH`.
      stream: of random bits, of `bits.STREAMS`.
      runs: for how many seeds the plan is.
      cases: in the order of the report.
      source: the plan as plain data, with the command line's values and defaults filled in.
    """

    title: str
    seed: int
    delta: float
    confidence: float
    until_decided: bool
    correction: str
    stream: str
    runs: int
    cases: tuple[Case, ...]
    source: Mapping[str, Any]

    @property
    def confidence_of_run(self) -> float:
        """Of the limits and verdicts of one run: all planned runs share the error allowed."""
        return 1.0 - (1.0 - self.confidence) / self.runs

    @property
    def hash(self) -> str:
        """SHA-256 of the plan's canonical JSON."""
        return sha256(self.source)


def load(
    path: Path | None = None,
    *,
    trials: int | None = None,
    seed: int | None = None,
    until_decided: bool = False,
) -> Plan:
    """Reads a plan.

    Args:
      path: a TOML file; None for the default plan.
      trials: instead of every number of trials in the plan.
      seed: instead of the plan's.
      until_decided: whatever the plan says.

    Raises:
      ValueError: a file that cannot be read, an unknown key, or a value outside its range; one
        line that names it.
    """
    if path is None:
        text = resources.files("jaxprune.studies").joinpath("default.toml").read_text("utf-8")
    else:
        try:
            if path.stat().st_size > MAX_PLAN_BYTES:
                raise ValueError(f"plan = {str(path)!r}: at most {MAX_PLAN_BYTES} bytes allowed")
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ValueError(f"plan = {str(path)!r}: {reason}") from None
    try:
        source = tomllib.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"plan = {str(path)!r}: not TOML: {str(error)[:200]}") from None
    return parse(source, trials=trials, seed=seed, until_decided=until_decided)


def parse(
    source: Mapping[str, Any],
    *,
    trials: int | None = None,
    seed: int | None = None,
    until_decided: bool = False,
) -> Plan:
    """A plan from plain data, every value checked; see `load`."""
    for key in source:
        validation.choice("key", key, PLAN_KEYS)
    source = dict(source)
    if seed is not None:
        source["seed"] = seed
    if trials is not None:
        source["trials"] = trials
    if until_decided:
        source["until_decided"] = True
    experiments = _tables("experiment", source.get("experiment"))
    if trials is not None:
        experiments = [{**e, "trials": trials} for e in experiments]
    source["experiment"] = experiments
    seed = validation.integer("seed", source.get("seed", 0), 0, keys.MAX_SEED)
    delta = validation.real("delta", source.get("delta", 0.05), 0.0, 1.0)
    confidence = validation.real("confidence", source.get("confidence", 0.99), 0.0, 1.0)
    until_decided = source.get("until_decided", False)
    validation.instance("until_decided", until_decided, bool, "true or false")
    correction = validation.choice("correction", source.get("correction", HOLM), CORRECTIONS)
    if correction == E_BH and not until_decided:
        raise ValueError(f"correction = {correction!r}: needs until_decided = true")
    stream = validation.choice("stream", source.get("stream", bits.STANDARD), bits.STREAMS)
    runs = validation.integer("runs", source.get("runs", 1), 1, 1000)
    default_trials = validation.integer("trials", source.get("trials", 1000), 1, keys.MAX_TRIALS)
    cases = []
    for i, experiment in enumerate(experiments, start=1):
        try:
            cases += _cases(experiment, default_trials, delta)
        except ValueError as error:
            raise ValueError(f"experiment {i}: {error}") from None
        if len(cases) > MAX_CASES:
            raise ValueError(f"experiment {i}: the plan has more than {MAX_CASES} cases")
    title = _text("title", source.get("title", "Untitled plan"))
    source |= {"title": title, "seed": seed, "delta": delta, "confidence": confidence}
    source |= {"until_decided": until_decided, "correction": correction, "runs": runs}
    if stream == bits.STANDARD:  # goes without saying: a plan's hash is that of before streams
        source.pop("stream", None)
    return Plan(
        title,
        seed,
        delta,
        confidence,
        until_decided,
        correction,
        stream,
        runs,
        tuple(cases),
        source,
    )


def _cases(source: Mapping[str, Any], trials: int, delta: float) -> list[Case]:
    for key in source:
        validation.choice("key", key, EXPERIMENT_KEYS)
    title = _text("title", _needed(source, "title"))
    domains = [
        validation.choice("domain", d, (UNIT_BALL, LINF_BALL, TEST_IMAGES))
        for d in _list(source.get("domain", UNIT_BALL))
    ]
    targets = _targets(source)
    if TEST_IMAGES in domains and isinstance(targets, Law):
        raise ValueError(f"domain = {TEST_IMAGES!r}: needs data")
    methods = [
        pruning.METHODS[validation.choice("pruning", name, pruning.METHODS)]
        for name in _list(_needed(source, "pruning"))
    ]
    balls = _balls(source, domains)
    trials = validation.integer("trials", source.get("trials", trials), 1, keys.MAX_TRIALS)
    asked = [
        validation.choice("eps", e, ("a number", THEOREM))
        if isinstance(e, str)
        else validation.real("eps", e, 0.0, float("inf"))
        for e in _list(_needed(source, "eps"))
    ]
    if THEOREM in asked and isinstance(targets, Recipe):
        raise ValueError(f"eps = {THEOREM!r}: there is no theorem for trained networks")
    if THEOREM in asked and LINF_BALL in domains:
        raise ValueError(f"eps = {THEOREM!r}: there is no theorem for domain = {LINF_BALL!r}")
    cases = []
    for network in _networks(source):
        layers = source.get("layers", "middle")
        pruned = networks.select_layers(network, layers)
        if isinstance(targets, Recipe):
            trained.check(network)
        for method, amount, domain in itertools.product(methods, _amounts(source), domains):
            for count in itertools.compress(network.weight_counts, pruned):
                method.level(amount, count)  # raises where the amount exceeds the layer
            certificate = None
            if isinstance(targets, Law) and domain == UNIT_BALL:
                certificate = bounds.certify(
                    network, targets, method, amount, layers=layers, delta=delta
                )
            if THEOREM in asked and not certificate.eps:
                raise ValueError(f"eps = {THEOREM!r}: {amount} removes nothing, eps would be 0")
            eps = tuple((certificate.eps, THEOREM) if e == THEOREM else (e, "asked") for e in asked)
            cases.append(
                Case(
                    title,
                    network,
                    targets,
                    method,
                    amount,
                    pruned,
                    domain,
                    balls[domain],
                    trials,
                    certificate,
                    eps,
                )
            )
    return cases


def _balls(source, domains) -> Mapping[str, UnitBall | LinfBall]:
    """By domain; the ball of the test images only says how many inputs are sampled at once."""
    search = {k: source[k] for k in ("samples", "starts", "steps") if k in source}
    if LINF_BALL not in domains:
        _refuse(source, f"domain = {domains[0]!r}", ("radius", "output"))
    cube = {k: source[k] for k in ("radius", "output") if k in source}
    unit = UnitBall(**search)
    return {UNIT_BALL: unit, TEST_IMAGES: unit, LINF_BALL: LinfBall(**search, **cube)}


def _networks(source) -> list[Network]:
    kind = validation.choice("network", _needed(source, "network"), ("dense", "convolutional"))
    name = validation.choice(
        "activation", source.get("activation", "relu"), activations.ACTIVATIONS
    )
    activation = activations.ACTIVATIONS[name]
    if "slope" in source:
        if name != "leaky_relu":
            raise ValueError(f"slope = {source['slope']!r}: needs activation = 'leaky_relu'")
        activation = activations.leaky_relu(source["slope"])
    if kind == "dense":
        _refuse(source, "network = 'dense'", ("channels", *_CONVOLUTIONAL))
        return [
            networks.dense(widths, activation)
            for widths in _nested("widths", _needed(source, "widths"))
        ]
    _refuse(source, "network = 'convolutional'", ("widths",))
    size = _needed(source, "size")
    options = {k: source[k] for k in _CONVOLUTIONAL if k in source and k != "size"}
    return [
        networks.convolutional(channels, size, activation=activation, **options)
        for channels in _nested("channels", _needed(source, "channels"))
    ]


_CONVOLUTIONAL = ("size", "kernel", "strides", "padding", "outputs")


def _targets(source) -> Law | Recipe:
    if "data" in source:
        validation.choice("data", source["data"], ("digits",))
        _refuse(source, "data", ("law", "scaling", "gain"))
        training = source.get("training", {})
        if not isinstance(training, Mapping):
            raise ValueError(f"training = {training!r}: a table is needed")
        names = [f.name for f in dataclasses.fields(Recipe) if f.name != "law"]
        for key in training:
            validation.choice("training key", key, names)
        return Recipe(**training)
    _refuse(source, "law", ("training",))
    law = laws.LAWS[validation.choice("law", _needed(source, "law"), laws.LAWS)]
    return law(**{k: source[k] for k in ("scaling", "gain") if k in source})


def _amounts(source) -> list[Amount]:
    kinds = {"alpha": pruning.Sublinear, "sparsity": pruning.Fraction, "count": pruning.Count}
    given = [key for key in kinds if key in source]
    if not given:
        raise ValueError(f"amount: one of {', '.join(kinds)} is needed")
    return [kinds[key](value) for key in given for value in _list(source[key])]


def _needed(source, key):
    if key not in source:
        raise ValueError(f"{key}: missing; {EXPERIMENT_KEYS[key]}")
    return source[key]


def _refuse(source, reason, names):
    for key in names:
        if key in source:
            raise ValueError(f"{key} = {source[key]!r}: does not go with {reason}")


def _list(value) -> Sequence:
    if isinstance(value, list):
        if not value:
            raise ValueError("[]: a list of at least one value is needed")
        return value
    return [value]


def _nested(name, value) -> Sequence[Sequence]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} = {value!r}: a list is needed")
    rows = value if isinstance(value[0], list) else [value]
    for row in rows:
        if not isinstance(row, list):
            raise ValueError(f"{name} = {value!r}: one list a network is needed")
    return rows


def _tables(name, value) -> list[Mapping]:
    if not isinstance(value, list) or not value or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"{name}: at least one table [[{name}]] is needed")
    return value


def _text(name, value) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise ValueError(f"{name} = {value!r}: a text of 1 to 200 characters is needed")
    return value
