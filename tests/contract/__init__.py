"""What labctl promises, on real stacks."""

import pytest

MARKS = {"netns": pytest.mark.netns, "docker": pytest.mark.docker}
"""The backends, and what marks a test that needs one."""
REAL = [pytest.param(name, marks=mark) for name, mark in MARKS.items()]
real_backends = pytest.mark.parametrize("backend", REAL)
