"""labctl: a lab for TCP connections that end badly."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labctl.testing import Lab

__all__ = ["Lab", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`labctl.Lab`, imported when it is asked for: `labctl --help` shall be quick."""
    if name == "Lab":
        from labctl.testing import Lab

        return Lab
    raise AttributeError(f"module 'labctl' has no attribute {name!r}")
