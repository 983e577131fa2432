"""Results in words, pictures and tables; nothing is computed here."""

from jaxprune.report.page import page, render, write_folder, write_json
from jaxprune.report.rows import records, to_csv, to_dataframe, to_xarray, write_parquet

__all__ = [
    "page",
    "records",
    "render",
    "to_csv",
    "to_dataframe",
    "to_xarray",
    "write_folder",
    "write_json",
    "write_parquet",
]
