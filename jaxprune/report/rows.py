"""Results as plain rows: CSV, Parquet, pandas, xarray."""

import importlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprune.files import whole_and_new
from jaxprune.report.reading import BOUND, FRONTIER, RARE, THRESHOLD, kind
from jaxprune.report.words import plain

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which a spreadsheet takes a cell for a formula."""

_BEHIND_SEMICOLON = re.compile(r';(?=[\s"]*[=+\-@])')


def records(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result as rows of numbers, texts and None, one a claim (verify), width and sparsity looked
    at (frontier), width, ε and δ (threshold), end of the bracket (rare), or method (bound).

    Keys of records inside are joined by dots; lists are JSON texts.

    Raises:
      ValueError: no result of a study.
    """
    of = kind(result)
    if of == FRONTIER:
        rows = [point | probe for point in result["points"] for probe in point["probes"]]
        for row in rows:
            del row["probes"]
    elif of == RARE:
        rows = [{"end": end} | found for end, found in result["ends"].items()]
    else:
        rows = result["methods" if of == BOUND else "cells"]
    return [dict(_flat("", row)) for row in rows]


def _flat(prefix, value):
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(f"{prefix}{key}.", item)
        else:
            text = isinstance(item, list)
            yield prefix + key, json.dumps(item, ensure_ascii=False) if text else item


def to_csv(result: Mapping[str, Any]) -> str:
    """`records` as CSV. Every text is in quotation marks and has no control characters. None starts
    as a formula does, nor does any part of one behind a semicolon, which separates cells in some
    countries: such a part gets an apostrophe in front."""
    rows = records(result)
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([row.get(name) for name in names] for row in rows)]
    return "".join(",".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value):
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    shown = plain(value)
    if value.startswith(FORMULA) or shown.lstrip().startswith(FORMULA):
        shown = f"'{shown}"
    shown = _BEHIND_SEMICOLON.sub(";'", shown)
    return '"' + shown.replace('"', '""') + '"'


def to_dataframe(result: Mapping[str, Any]) -> Any:
    """`records` as a `pandas.DataFrame`; texts and names have no control characters.

    Raises:
      ValueError: pandas is not installed.
    """
    shown = lambda value: plain(value) if isinstance(value, str) else value
    rows = ({plain(name): shown(value) for name, value in row.items()} for row in records(result))
    return optional("pandas").DataFrame(list(rows))


def to_xarray(result: Mapping[str, Any]) -> Any:
    """`records` as an `xarray.Dataset` whose one dimension names what a row is: `claim`, `probe`,
    `width_eps_delta`, `end` or `method`; in a result of `verify` the quantiles of the gap's two
    bounds are `gap_quantile` of dimensions `claim`, `bound` and `level`.

    Raises:
      ValueError: pandas or xarray is not installed.
    """
    frame, xarray = to_dataframe(result), optional("xarray")
    of = kind(result)
    dimension = {FRONTIER: "probe", THRESHOLD: "width_eps_delta", RARE: "end", BOUND: "method"}
    dimension = dimension.get(of, "claim")
    if of == RARE:
        frame = frame.set_index("end")
    levels = {
        bound: [n for n in frame if n.startswith(f"gap_{bound}_quantiles.")]
        for bound in ("lower", "upper")
    }
    data = {
        name: (dimension, frame[name].to_numpy())
        for name in frame
        if name not in levels["lower"] + levels["upper"]
    }
    coords: dict[str, Any] = {dimension: frame.index.to_numpy()}
    if levels["lower"]:
        stacked = [frame[names].to_numpy(float) for names in levels.values()]
        data["gap_quantile"] = (("bound", dimension, "level"), stacked)
        coords |= {"bound": list(levels), "level": [float(n.split(".", 1)[1]) for n in
                                                    levels["lower"]]}  # fmt: skip
    return xarray.Dataset(data, coords)


def write_parquet(result: Mapping[str, Any], path: Path) -> None:
    """`to_dataframe` as a new Parquet file.

    Raises:
      ValueError: pandas or pyarrow is not installed, or a column is of no one type.
      FileExistsError: there is one.
    """
    arrow = optional("pyarrow")
    frame, content = to_dataframe(result), io.BytesIO()
    try:
        frame.to_parquet(content, engine="pyarrow")
    except (arrow.ArrowException, OverflowError) as error:
        told = str(error).partition("\n")[0]
        raise ValueError(f"parquet = {str(path)!r}: {told}") from None
    with whole_and_new(path) as file:
        file.write(content.getbuffer())


def optional(name: str) -> Any:
    """A package of the extra `tables`.

    Raises:
      ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"{name}: not installed; pip install 'jaxprune[tables]'") from None
