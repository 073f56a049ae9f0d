"""Compression methods by name."""

from core.methods.method import Method, MethodInfo, RewritingMethod
from core.methods.registry import get_method, method_infos

__all__ = ["Method", "MethodInfo", "RewritingMethod", "get_method", "method_infos"]
