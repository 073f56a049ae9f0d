"""Delivery: the forms in which a network leaves the service."""

from core.deliver.delivery import OUTPUTS, Delivery, deliver
from core.deliver.latency import Latency

__all__ = ["OUTPUTS", "Delivery", "Latency", "deliver"]
