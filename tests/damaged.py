"""Files that something has damaged, for tests of what reads them."""

from __future__ import annotations

from hypothesis import strategies as st


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """The same with some bytes lost, some more and some others, in a few places."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(found) - 1)) if found else 0
        found[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    return bytes(found)
