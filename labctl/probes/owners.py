"""Which host has an address, and which one had it before it moved."""

from __future__ import annotations

from collections.abc import Mapping


class Owners(dict[str, str]):
    """The host of each address now."""

    def __init__(
        self,
        now: Mapping[str, str] | None = None,
        before: Mapping[str, tuple[tuple[float, str], ...]] | None = None,
    ) -> None:
        super().__init__(now or {})
        self._before = before or {}

    def moved(self, address: str, host: str, t: float) -> Owners:
        """The same, but from `t` on a host has this address."""
        before = self._before
        if address in self:
            before = {**before, address: (*before.get(address, ()), (t, self[address]))}
        return Owners({**self, address: host}, before)

    def settled(self, address: str) -> bool:
        """Whether an address never moved."""
        return address not in self._before

    def at(self, address: str, t: float) -> str | None:
        """The host that had an address at a time; before anything was known of it, the first host
        that ever had it."""
        held = (host for until, host in self._before.get(address, ()) if t < until)
        return next(held, self.get(address))
