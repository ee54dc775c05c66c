"""The links of a lab, as the kernel takes or refuses them."""

from __future__ import annotations

import pytest

from labctl.backends.netns.links import Links

NOWHERE = 2_000_000_000


@pytest.mark.parametrize("address", ["198.18.0.2/24", "fd00::2/64"])
def test_what_the_kernel_refuses_is_named(address: str) -> None:
    links = Links()
    with pytest.raises(OSError, match=f"interface {NOWHERE}: "):
        links.up(NOWHERE)
    with pytest.raises(OSError, match=f"{address}: "):
        links.address(NOWHERE, address)
    links.close()
