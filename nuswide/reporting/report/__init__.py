"""What an evaluation found, for readers: one page, and its pieces as figures and tables.

Owns what is shown, in which order and words. Scores nothing, records nothing, writes no file.

    report = make_report(Subject("resnet18", "test", data, scores, thresholds, train_positives))
    Path("report.html").write_text(to_html(report), encoding="utf-8")
"""

from nuswide.reporting.report.html import to_html
from nuswide.reporting.report.make import Report, make_report
from nuswide.reporting.report.subject import Part, Subject

__all__ = ["Part", "Report", "Subject", "make_report", "to_html"]
