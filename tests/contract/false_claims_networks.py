"""False claims of the lessons with several networks (see test_false_claims)."""

from __future__ import annotations

from tests.contract.false_claims import FalseClaim

OF_NETWORKS = [
    FalseClaim(
        "endings/nat_forgets",
        "{timeout: 1,",
        "{timeout: 60,",
        "server: no connection",
        (("speaks", "server"), ("keepalive", 0)),
    ),
    FalseClaim(
        "endings/nat_forgets",
        "TCP_KEEPIDLE 1",
        "TCP_KEEPIDLE 60",
        "server: ESTAB",
        (("keepalive", 1),),
    ),
    FalseClaim(
        "endings/nat_forgets",
        'tcp_loose: "${loose}"',
        'tcp_loose: "1"',
        "client: at least 3 segment lost data from client to server since asked",
        (("speaks", "client"), ("loose", 0)),
    ),
]
