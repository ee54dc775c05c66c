"""Error numbers: Linux's, and as the peer names them."""

from __future__ import annotations

import errno

from labctl.ground import errnos
from labctl.language.calls import peer

# Error numbers


def test_error_numbers_are_those_of_linux() -> None:
    assert {name: getattr(errno, name) for name in errnos.LINUX} == errnos.LINUX
    assert set(errnos.BSD) <= set(errnos.LINUX)


def test_error_numbers_are_named_as_the_peer_names_them() -> None:
    names = peer().ERRNOS
    assert {name: names[number] for name, number in errnos.LINUX.items()} == {
        name: name for name in errnos.LINUX
    }


def test_error_numbers_in_words() -> None:
    assert errnos.describe("EADDRINUSE") == "EADDRINUSE (98 on Linux, 48 on macOS and the BSDs)"
    assert errnos.describe("EBADF") == "EBADF (9)"
    assert errnos.describe("EAI_NONAME") == "EAI_NONAME"
    assert errnos.describe("ENEW") == "ENEW"


def test_words_without_numbers() -> None:
    told = f"{errnos.describe('EADDRINUSE')}, then {errnos.describe('EBADF')} (9)"
    assert errnos.bare(told) == "EADDRINUSE, then EBADF (9)"
