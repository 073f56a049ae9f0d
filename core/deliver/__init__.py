"""Delivery: the forms in which a network leaves the service."""

from core.deliver.delivery import NO_CALIBRATION, OUTPUTS, Delivery, deliver
from core.deliver.latency import Latency
from core.deliver.notices import require_outputs

__all__ = ["NO_CALIBRATION", "OUTPUTS", "Delivery", "Latency", "deliver", "require_outputs"]
