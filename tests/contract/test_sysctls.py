"""Sysctls of the whole machine, which no host has, on every backend."""

from __future__ import annotations

import os
import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from labctl.backends.sysctls import OF_THE_MACHINE
from labctl.language.document import Document
from labctl.language.scenario import load_document
from tests.contract import real_backends
from tests.contract.test_lessons import run

TEXT = """\
title: A sysctl of the whole machine
hosts: {server: {HOST}, client: {}}
steps: [STEP]
"""


@real_backends
@pytest.mark.parametrize(
    ("key", "value"),
    [("net.ipv4.tcp_max_orphans", 1), ("net.ipv4.tcp_mem", '"9 9 9"'), ("net.core.rmem_max", 9999)],
)
def test_the_run_is_skipped_and_says_where_it_could_be_set(
    backend: str, key: str, value: object, tmp_path: Path
) -> None:
    for name, text in {
        "host": TEXT.replace("HOST", f"sysctls: {{{key}: {value}}}").replace("STEP", "note: a"),
        "step": TEXT.replace("HOST", "").replace("STEP", f"sysctl: {{server: {{{key}: {value}}}}}"),
    }.items():
        (case,) = load_document(Document(name, text), text, name, {})
        found = run(case, backend, tmp_path)
        assert (found.result, found.reason) == (
            "skip",
            f"{key} belongs to the whole machine: no namespace has one of its own; "
            "run it in a guest, whose whole machine is the lab's: --kernel NAME",
        )


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="what root's namespaces have, only root can see")
def test_all_that_this_kernel_has_for_the_whole_machine_is_known() -> None:
    here, there = settable(), settable("unshare", "--net")
    if not here - there:
        pytest.skip("this is no first network namespace")
    unknown = {
        key
        for key in here - there
        if not re.search(r"\.(conf|neigh)\.(?!default)", key)  # of an interface
        and not any(fnmatchcase(key, known) for known in OF_THE_MACHINE)
    }
    assert not unknown


def settable(*prefix: str) -> set[str]:
    """The sysctls that somebody can set in a namespace."""
    find = ["find", "/proc/sys/net", "-type", "f", "-perm", "/222"]
    found = subprocess.run([*prefix, *find], capture_output=True, text=True, check=True).stdout
    return {line.removeprefix("/proc/sys/").replace("/", ".") for line in found.splitlines()}
