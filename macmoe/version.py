"""The version, in a place that every layer may read."""

__version__ = "0.2.0"
