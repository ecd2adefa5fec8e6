"""One self-contained HTML page about one or several runs: tables, charts, training, and the worst queries with their frames."""

from xmafast.report.page import report_page

__all__ = ["report_page"]
