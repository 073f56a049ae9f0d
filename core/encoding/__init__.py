"""Compact storage: shared weight values, lossless coding, and the `.pwt` container."""
