"""report.json and report.html of a finished run."""

from .build import build_report
from .render import render_html, write_report

__all__ = ["build_report", "render_html", "write_report"]
