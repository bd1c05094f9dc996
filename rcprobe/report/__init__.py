"""What a run found."""

from rcprobe.report.report import Report, SeedRun, build

__all__ = ["Report", "SeedRun", "build"]
