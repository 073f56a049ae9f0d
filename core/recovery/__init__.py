"""Recovery: datasets, accuracy, and getting back what pruning cost."""

from core.recovery.dataset import DatasetProfile, ImageDataset, Split, inspect_dataset, load_dataset
from core.recovery.evaluation import accuracy, check_baseline, check_fits

__all__ = [
    "DatasetProfile",
    "ImageDataset",
    "Split",
    "accuracy",
    "check_baseline",
    "check_fits",
    "inspect_dataset",
    "load_dataset",
]
