"""Version of mpirt."""

__version__ = "0.1.0"
