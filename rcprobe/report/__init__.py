"""What a run found."""

from rcprobe.report.report import Report, SeedRun, build
from rcprobe.report.saved import load_report, save_report

__all__ = ["Report", "SeedRun", "build", "load_report", "save_report"]
