"""``rcprobe.visible``, where reports look for it."""

from rcprobe.visible import shortened, visible

__all__ = ["shortened", "visible"]
