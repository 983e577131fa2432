"""Plans from TOML files and plain data."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jaxprune import bits, validation
from jaxprune.engine import keys
from jaxprune.statistics import CORRECTIONS, E_BH, HOLM
from jaxprune.studies.plan.experiments import Size, read_cases, read_tables, read_text, size
from jaxprune.studies.plan.keys import PLAN_KEYS
from jaxprune.studies.plan.records import Plan

MAX_PLAN_BYTES = 2**20

BUDGET = Size(cases=10_000, claims=20_000, layers=20_000)
"""At most so much of a plan, counted before anything is built: a layer of a case takes tenths of a
second to certify, and a report reads no more claims."""

FIRST = "first"
BUNDLED = {
    FIRST: "the paper's three theorems and one trained network",
    "full": "the same at widths from 16 to 256, and more laws, networks and inputs",
}
"""Plans that come with the package, by name: what each asks."""


def load(
    path: Path | str = FIRST,
    *,
    trials: int | None = None,
    seed: int | None = None,
    until_decided: bool = False,
) -> Plan:
    """Reads a plan.

    Args:
      path: the name of a bundled plan, of `BUNDLED`, or a TOML file; a `Path` is always a file.
      trials: instead of every number of trials in the plan.
      seed: instead of the plan's.
      until_decided: whatever the plan says.

    Raises:
      ValueError: a file that cannot be read, an unknown key, or a value outside its range; one
        line that names it.
    """
    named = isinstance(path, str) and path in BUNDLED
    text = _bundled(path) if named else _read(Path(path))
    try:
        source = tomllib.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"plan = {str(path)!r}: not TOML: {str(error)[:200]}") from None
    return parse(source, trials=trials, seed=seed, until_decided=until_decided)


def _bundled(name: str) -> str:
    return resources.files("jaxprune.studies").joinpath("plans", f"{name}.toml").read_text("utf-8")


def _read(path: Path) -> str:
    named = f"plan = {str(path)!r}"
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise ValueError(f"{named}: no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_PLAN_BYTES + 1)
        if len(data) > MAX_PLAN_BYTES:
            raise ValueError(f"{named}: at most {MAX_PLAN_BYTES} bytes allowed")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        if isinstance(error, FileNotFoundError) and not path.suffix:
            reason = f"{reason}; the bundled plans are {' and '.join(BUNDLED)}"
        raise ValueError(f"{named}: {reason}") from None


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
    experiments = read_tables("experiment", source.get("experiment"))
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
    counted = Size(*(sum(of) for of in zip(*map(size, experiments), strict=True)))
    for what, count, most in zip(Size._fields, counted, BUDGET, strict=True):
        if count > most:
            raise ValueError(f"experiment: {count} {what} in all, at most {most} are allowed")
    cases = []
    for i, experiment in enumerate(experiments, start=1):
        try:
            cases += read_cases(experiment, default_trials, delta)
        except ValueError as error:
            raise ValueError(f"experiment {i}: {error}") from None
    title = read_text("title", source.get("title", "Untitled plan"))
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
