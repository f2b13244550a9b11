"""report.json and report.html of a finished run."""

from .build import build_report
from .facts import figures
from .render import amend_report, read_report, render_html, write_report
from .verdict import sentences

__all__ = ["amend_report", "build_report", "figures", "read_report", "render_html", "sentences", "write_report"]
