"""An experiment of a plan as its cases, every value checked."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune import activations, bounds, laws, networks, pruning, validation
from jaxprune.engine import keys
from jaxprune.engine.simulate import MAX_EPS
from jaxprune.gaps import LinfBall, UnitBall
from jaxprune.laws import Law
from jaxprune.networks import Network
from jaxprune.pruning import Amount
from jaxprune.studies import trained
from jaxprune.studies.plan.keys import EXPERIMENT_KEYS, LINF_BALL, TEST_IMAGES, THEOREM, UNIT_BALL
from jaxprune.studies.plan.records import Case
from jaxprune.studies.trained import Recipe


class Size(NamedTuple):
    """How much a plan, or a part of it, asks for.

    Attributes:
      cases: simulations.
      claims: of all cases.
      layers: of all cases' networks.
    """

    cases: int
    claims: int
    layers: int


def size(source: Mapping[str, Any]) -> Size:
    """The size of an experiment whose values are not checked yet."""
    count = lambda key: len(source[key]) if isinstance(source.get(key), list) else 1
    rows = source.get("widths", source.get("channels"))
    rows = rows if isinstance(rows, list) else []
    rows = rows if rows and isinstance(rows[0], list) else [rows]
    more = ("outputs" in source) - 1
    networks = [len(row) + more if isinstance(row, list) else 0 for row in rows]
    amounts = sum(count(key) for key in _AMOUNTS if key in source)
    each = count("pruning") * count("domain") * amounts
    cases = len(networks) * each
    return Size(cases, cases * count("eps"), sum(networks) * each)


def read_cases(source: Mapping[str, Any], trials: int, delta: float) -> list[Case]:
    for key in source:
        validation.choice("key", key, EXPERIMENT_KEYS)
    title = read_text("title", _needed(source, "title"))
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
    validation.integer("number of epsilons", len(asked), 1, MAX_EPS)
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


_AMOUNTS = {"alpha": pruning.Sublinear, "sparsity": pruning.Fraction, "count": pruning.Count}
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
    given = [key for key in _AMOUNTS if key in source]
    if not given:
        raise ValueError(f"amount: one of {', '.join(_AMOUNTS)} is needed")
    return [_AMOUNTS[key](value) for key in given for value in _list(source[key])]


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


def read_tables(name, value) -> list[Mapping]:
    if not isinstance(value, list) or not value or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"{name}: at least one table [[{name}]] is needed")
    return value


def read_text(name, value) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise ValueError(f"{name} = {value!r}: a text of 1 to 200 characters is needed")
    return value
