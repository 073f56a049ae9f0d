"""Compression methods by name."""

from core.methods.method import Method, MethodInfo
from core.methods.registry import get_method, method_infos

__all__ = ["Method", "MethodInfo", "get_method", "method_infos"]
