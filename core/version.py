"""The engine's version, recorded in every report and published in the workers' catalogue."""

VERSION = "0.1.0"
