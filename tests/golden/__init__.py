"""Files that hold what labctl should print. UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent


def agrees(file: Path, text: str) -> bool:
    """Whether a file holds a text; with UPDATE_GOLDEN it does from now on."""
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text("utf-8"), (
        f"{file}: if the new text is right, run this test with UPDATE_GOLDEN=1, which writes it"
    )
    return True
