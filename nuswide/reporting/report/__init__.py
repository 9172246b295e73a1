"""An evaluation for readers: one page, and its plots and tables.

Owns what is shown, in which order and words. Scores nothing, records nothing, writes no file.
"""

from nuswide.reporting.report.html import to_html
from nuswide.reporting.report.inputs import Part, ReportInputs
from nuswide.reporting.report.make import Report, make_report

__all__ = ["Part", "Report", "ReportInputs", "make_report", "to_html"]
