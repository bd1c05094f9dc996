"""Forward-only training."""

from rcprobe.training.config import TrainConfig
from rcprobe.training.trainer import Checkpoint, train

__all__ = ["Checkpoint", "TrainConfig", "train"]
