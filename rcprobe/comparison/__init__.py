"""Many runs as one page: what each found, side by side, and what can be said of their differences."""

from rcprobe.comparison.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
