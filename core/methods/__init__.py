"""Compression methods by name."""

from core.methods.registry import Method, MethodInfo, get_method, method_infos

__all__ = ["Method", "MethodInfo", "get_method", "method_infos"]
