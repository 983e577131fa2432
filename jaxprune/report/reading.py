"""What a result must look like to be shown: files of others are not believed.

Every key that the page or a table uses is checked, and named where it is wrong; others are left
alone. What passes can be drawn; it may still be a lie, which `jaxprune replay` tells.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune.report.words import COUNTS
from jaxprune.statistics import CERTIFIED, ESTIMATED, HOLDS, TRIALS, UNDECIDED, VIOLATED
from jaxprune.statistics.ends import BRACKET
from jaxprune.statistics.splitting import EXTINCT, MIXING, SPREAD

VERIFY, FRONTIER, THRESHOLD, RARE, BOUND = STUDIES = (
    "verify",
    "frontier",
    "threshold",
    "rare",
    "bound",
)
LEVELS = ("0.01", "0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95", "0.99", "1")
LARGEST = 1e100
"""Of a gap; certified ones of deep networks are far above those of float32."""

MAX_LIST = 20_000
MAX_TEXT = 10_000

Check = Callable[[str, Any], None]


def kind(result: Any) -> str:
    """Of which study a result is.

    Raises:
      ValueError: of none.
    """
    if isinstance(result, Mapping) and isinstance(result.get("plan"), Mapping):
        study = result["plan"].get("study")
        for key, name in (("cells", VERIFY), ("ends", RARE), ("methods", BOUND)):
            if key in result and study is None:
                return name
        for key, name in (("points", FRONTIER), ("thresholds", THRESHOLD)):
            if key in result and study == name:
                return name
    raise ValueError(f"no result of {', '.join(STUDIES)}")


def check(result: Any) -> str:
    """Checks a result that was read from a file.

    Args:
      result: plain data.

    Returns:
      Of which study it is.

    Raises:
      ValueError: the first key that is missing or wrong, and what is needed.
    """
    name = kind(result)
    CHECKS[name]("", result)
    if name == THRESHOLD:
        plan, found = result["plan"], result["thresholds"]
        for key, at in (("delta", plan["delta"]), ("eps", plan["eps_of_deltas"])):
            if not any(row[key] == at for row in found):
                raise ValueError(f"thresholds: one with {key} = {at} is needed")
    if name == VERIFY:
        for i, cell in enumerate(result["cells"]):
            if sum(cell[key] for key in COUNTS) != cell["trials"]:
                raise ValueError(
                    f"cells[{i}].trials = {cell['trials']}: the sum of its counts is needed"
                )
    return name


# --- what values may be: checks that take a name and a value


def _wrong(at: str, value: Any, needed: str) -> ValueError:
    shown = repr(value)
    return ValueError(f"{at} = {shown if len(shown) <= 60 else shown[:57] + '...'}: {needed}")


def _text(at, value):
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise _wrong(at, value, f"text of at most {MAX_TEXT} characters is needed")


def _number(low: float, high: float, *, whole: bool = False) -> Check:
    what = "an integer" if whole else "a number"
    kinds = int if whole else (int, float)

    def check(at, value):
        # Python's integers have no end, and a Boolean is one.
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise _wrong(at, value, f"{what} from {low:g} to {high:g} is needed")

    return check


def _one_of(*allowed: Any) -> Check:
    def check(at, value):
        if not any(value is a or (isinstance(a, str) and value == a) for a in allowed):
            shown = ", ".join("null" if a is None else str(a) for a in allowed)
            raise _wrong(at, value, f"one of {shown} is needed")

    return check


def _or_null(inner: Check) -> Check:
    def check(at, value):
        if value is not None:
            inner(at, value)

    return check


def _list(inner: Check, least: int = 0) -> Check:
    def check(at, value):
        if not isinstance(value, list) or not least <= len(value) <= MAX_LIST:
            raise _wrong(at, value, f"a list of {least} to {MAX_LIST} is needed")
        for i, item in enumerate(value):
            inner(f"{at}[{i}]", item)

    return check


def _record(*, exact: bool = False, **checks: Check) -> Check:
    def check(at, value):
        if not isinstance(value, Mapping) or (exact and value.keys() - checks.keys()):
            raise _wrong(at, value, f"an object of {', '.join(checks)} is needed")
        for key, inner in checks.items():
            name = f"{at}.{key}" if at else key
            if key not in value:
                raise ValueError(f"{name}: missing")
            inner(name, value[key])

    return check


def _pair(at, value):
    _list(_gap, 2)(at, value)
    if len(value) > 2:
        raise _wrong(at, value, "two numbers are needed")


def _mapping(inner: Check) -> Check:
    def check(at, value):
        if not isinstance(value, Mapping) or len(value) > MAX_LIST:
            raise _wrong(at, value, "an object is needed")
        for key, item in value.items():
            inner(f"{at}.{key}", item)

    return check


def _plain(at, value):
    """A number, a text or nothing."""
    if isinstance(value, str):
        _text(at, value)
    elif value is not None and not isinstance(value, bool):
        _number(-LARGEST, LARGEST)(at, value)


def _flag(at, value):
    if not isinstance(value, bool):
        raise _wrong(at, value, "true or false is needed")


_share = _number(0.0, 1.0)
_inside = _number(1e-300, 1.0 - 2**-53)
_gap = _number(0.0, LARGEST)
_positive = _number(1e-100, LARGEST)
_count = _number(0, 10**12, whole=True)
_width = _number(1, 10**12, whole=True)
_signed = _number(-LARGEST, LARGEST)
_texts = _list(_text)
_quantiles = _record(**dict.fromkeys(LEVELS, _or_null(_gap)))
_counts = dict.fromkeys(COUNTS, _count)
_limits = {"p_low": _share, "p_high": _share}
_judged = {
    **_counts,
    **_limits,
    "verdict": _one_of(HOLDS, VIOLATED, UNDECIDED),
    "reason": _or_null(_text),
}
_environment = _mapping(_plain)

_cell = _record(
    **_counts,
    **_limits,
    case=_number(0, 10**6, whole=True),
    experiment=_text,
    network=_text,
    widths=_list(_width, 2),
    law=_or_null(_text),
    training=_or_null(_text),
    pruning=_text,
    amount=_text,
    layers=_texts,
    sparsity=_share,
    domain=_text,
    eps=_positive,
    eps_source=_one_of("theorem", "asked"),
    delta=_inside,
    confidence=_inside,
    trials=_count,
    verdict=_one_of(HOLDS, VIOLATED, UNDECIDED, ESTIMATED),
    by_theorem=_one_of(CERTIFIED, None),
    certified_eps=_or_null(_gap),
    gap_lower_quantiles=_quantiles,
    gap_upper_quantiles=_quantiles,
    survival=_or_null(_list(_record(eps=_positive, low=_share, high=_share), 1)),
    mean_squared_gap_infinite_width=_or_null(_gap),
    accuracy_change=_or_null(_number(-1.0, 1.0)),
    worst_trials=_list(_record(trial=_count, gap=_or_null(_gap))),
)

# A law of such a slope over such widths stays within float64.
_fit = _record(
    slope=_number(-20.0, 20.0),
    low=_signed,
    high=_signed,
    intercept=_number(-100.0, 100.0),
    lack_of_fit=_share,
)

_law = _record(family=_text, scaling=_text)
_setting = {
    "hash": _text,
    "law": _law,
    "pruning": _text,
    "layers": _texts,
    "confidence": _inside,
    "trials": _count,
    "delta": _inside,
    "cells": _count,
}


def _exponent_of(at, value):
    """Limits and points are there but where an exponent is the paper's."""
    _record(of=_text, kind=_text, estimate=_or_null(_signed))(at, value)
    if value["kind"] != "paper":
        known = _or_null(_signed) if value["estimate"] is None else _signed
        scatter = dict.fromkeys(("scatter_low", "scatter_high"), _or_null(_signed))
        _record(low=known, high=known, **scatter, points=_count)(at, value)


_bracket = _record(above=_or_null(_width), most=_or_null(_width))


def _answers(inner: Check) -> Check:
    return _record(theorem=_or_null(inner), infinite_width=_or_null(inner))


def _widths_and_answers(at, value):
    _answers(_width)(at, value)
    _record(widths=_list(_plain, 2))(at, value)


_answer = {"name": _text, "reference": _text, "value": _gap}

CHECKS: Mapping[str, Check] = {
    VERIFY: _record(
        plan=_record(
            hash=_text,
            title=_text,
            until_decided=_flag,
            correction=_one_of("holm", "e-bh"),
        ),
        runs=_record(
            planned=_count,
            seeds=_list(_plain),
            present=_plain,
            exploratory=_flag,
        ),
        environment=_environment,
        blocks=_record(
            complete=_flag, tallies=_text, audited=_or_null(_count), failed_audit=_or_null(_text)
        ),
        cells=_list(_cell, 1),
        exponents=_list(
            _record(
                experiment=_text,
                pruning=_text,
                amount=_text,
                domain=_text,
                widths=_list(_number(1, 2**31, whole=True), 1),
                median_lower=_or_null(_fit),
                median_upper=_or_null(_fit),
                typical=_or_null(_fit),
            )
        ),
    ),
    FRONTIER: _record(
        plan=_record(**_setting, eps=_positive, resolution=_share),
        environment=_environment,
        points=_list(
            _record(
                network=_text,
                width=_width,
                holds=_share,
                violated=_or_null(_share),
                open_because=_one_of(BRACKET, TRIALS, "resolution", None),
                theorem=_or_null(_share),
                infinite_width=_or_null(_share),
                probes=_list(_record(**_judged, sparsity=_share)),
            ),
            1,
        ),
    ),
    THRESHOLD: _record(
        plan=_record(
            **_setting,
            amount=_text,
            alpha=_or_null(_inside),
            eps=_list(_positive, 1),
            deltas=_list(_inside, 1),
            eps_of_deltas=_positive,
            eps_source=_one_of("asked", "pilot"),
            widths=_list(_width, 1),
        ),
        environment=_environment,
        cells=_list(
            _record(**_judged, width=_width, eps=_positive, delta=_inside),
            1,
        ),
        thresholds=_list(
            _record(
                **{
                    "eps": _positive,
                    "delta": _inside,
                    "gap": _bracket,
                    "lower end": _bracket,
                    "upper end": _bracket,
                    "theorem": _or_null(_width),
                    "infinite_width": _or_null(_width),
                }
            ),
            1,
        ),
        exponents=_list(_exponent_of),
    ),
    RARE: _record(
        plan=_record(
            hash=_text,
            network=_text,
            law=_law,
            pruning=_text,
            amount=_text,
            layers=_texts,
            eps=_positive,
            confidence=_inside,
            splitting=_record(steps=_count),
        ),
        environment=_environment,
        ends=_record(
            exact=True,
            **dict.fromkeys(
                ("lower", "upper"),
                _record(
                    p=_share,
                    low=_share,
                    high=_share,
                    replicas=_list(_share, 1),
                    short_replicas=_list(_share, 1),
                    doubts=_list(_one_of(MIXING, SPREAD, EXTINCT)),
                    certifying_trials=_or_null(_number(0, math.inf, whole=True)),
                ),
            ),
        ),
        theorem=_or_null(_share),
    ),
    BOUND: _record(
        plan=_record(
            hash=_text,
            network=_text,
            amount=_text,
            layers=_texts,
            delta=_inside,
            eps=_or_null(_positive),
        ),
        environment=_environment,
        methods=_list(
            _record(
                pruning=_text,
                certificate=_record(
                    eps=_gap,
                    route=_one_of("norms", "images"),
                    events=_list(_record(**_answer, layer=_text, what=_text, delta=_share)),
                ),
                norms=_list(
                    _record(
                        layers=_texts,
                        matrix=_text,
                        bounds=_list(_record(**_answer, mean=_or_null(_gap))),
                    )
                ),
                thresholds=_mapping(_pair),
                inverses=_or_null(
                    _record(
                        least_delta=_answers(_share),
                        largest_sparsity=_answers(_share),
                        largest_amounts=_answers(
                            _record(removed=_mapping(_count), sparsity=_share)
                        ),
                        least_width=_or_null(_widths_and_answers),
                    )
                ),
                infinite_width=_or_null(_record(typical_gap=_gap, correlation=_or_null(_signed))),
                paper=_record(
                    theorem=_or_null(_text),
                    hypotheses=_list(_record(name=_text, met=_flag)),
                ),
            ),
            1,
        ),
    ),
}
