"""labctl: a lab for TCP connections that end badly."""

__version__ = "0.1.0"
