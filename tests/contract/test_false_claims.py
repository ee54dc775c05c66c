"""No lesson holds by accident: where one is changed so that it claims what is not so, or so that
what it shows does not happen, it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.false_claims import (
    OF_CLIENTS,
    OF_HOURS,
    OF_PROXIES,
    OF_SERVERS,
    FalseClaim,
)
from tests.contract.false_claims_catalogue import OF_THE_CATALOGUE
from tests.contract.false_claims_endings import OF_ENDINGS
from tests.contract.false_claims_lessons import OF_LESSONS
from tests.contract.false_claims_networks import OF_NETWORKS
from tests.contract.test_lessons import FILES, HOURS, MINUTES, report, run

FALSE_CLAIMS = [
    *OF_LESSONS, *OF_THE_CATALOGUE, *OF_SERVERS, *OF_ENDINGS, *OF_NETWORKS, *OF_CLIENTS,
    *OF_PROXIES,
]  # fmt: skip


def claims() -> list[Any]:
    """All of them; those that take a minute run in CI."""
    return [
        pytest.param(
            claim, id=str(claim), marks=[pytest.mark.ci] if claim.lesson in MINUTES else []
        )
        for claim in FALSE_CLAIMS
    ]


@pytest.mark.netns
@pytest.mark.parametrize("claim", claims())
def test_false_claim_fails(claim: FalseClaim, tmp_path: Path) -> None:
    result = run(claim.case, "netns", tmp_path)
    if result.result == "skip":
        pytest.skip(result.reason or "")
    assert result.result == "fail", report(result)
    failed = [v for v in result.verdicts if v.result == "fail"]
    assert claim.blamed in [v.what for v in failed], report(result)
    assert {v.source for v in failed} == {failed[-1].source}, report(result)


def test_false_claims_of_every_lesson() -> None:
    assert {claim.lesson for claim in FALSE_CLAIMS} == FILES.keys() - HOURS
    assert {claim.lesson for claim in OF_HOURS} == HOURS
