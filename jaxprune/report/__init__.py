"""Results in words, pictures and tables; nothing is computed here."""

from jaxprune.report.page import page, render, summarize, write_folder, write_json
from jaxprune.report.rows import records, to_csv, to_dataframe, to_xarray, write_parquet
from jaxprune.report.verify import claim_lines, header

__all__ = [
    "claim_lines",
    "header",
    "page",
    "records",
    "render",
    "summarize",
    "to_csv",
    "to_dataframe",
    "to_xarray",
    "write_folder",
    "write_json",
    "write_parquet",
]
