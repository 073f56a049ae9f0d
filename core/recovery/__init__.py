"""Recovery: datasets, accuracy, and getting back what pruning cost."""

from core.recovery.config import RecoveryConfig
from core.recovery.dataset import ImageDataset, load_dataset
from core.recovery.dataset_profile import DatasetProfile, inspect_dataset
from core.recovery.encoded_images import Conversion
from core.recovery.evaluation import accuracy, check_baseline, check_fits
from core.recovery.images import Split
from core.recovery.pipeline import Recovered, recover

__all__ = [
    "Conversion",
    "DatasetProfile",
    "ImageDataset",
    "Recovered",
    "RecoveryConfig",
    "Split",
    "accuracy",
    "check_baseline",
    "check_fits",
    "inspect_dataset",
    "load_dataset",
    "recover",
]
