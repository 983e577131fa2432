"""Results in words and pictures; nothing is computed here."""

from jaxprune.report.page import page, write_folder, write_json
from jaxprune.report.table import render

__all__ = ["page", "render", "write_folder", "write_json"]
