"""An image is judged as it is: with its own command, entrypoint, environment, user and folder."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from labctl.backends.docker import images
from labctl.ground.resources import scenarios
from labctl.judge.result import RunResult
from labctl.language.scenario import Scenario, load
from labctl.run.places import DEFAULT_OS
from tests.contract.test_lessons import played, report, run

pytestmark = pytest.mark.docker

Make = Callable[..., str]

TELL = "import os, sys; print('args', sys.argv[1:], os.getcwd(), os.getenv('WORD'), os.getuid())"
SERVE = """
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
print('my own server', flush=True)
ThreadingHTTPServer(('', int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
"""


MEDDLE = """
import os
open('/etc/ld.so.preload', 'w').write('/nosuch.so')
for path in '/.labctl/peer.pyc', '/.labctl/lib/python311.zip', '/.labctl/start':
    try: open(path, 'w')
    except OSError as exc: print(exc.strerror.split()[0])
"""


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    """Makes an image from lines of a Dockerfile, and returns its name."""
    client = docker.from_env()
    made = []

    def build(*lines: str) -> str:
        base = images.ensure(client.api, DEFAULT_OS, print).peer
        tag = f"labctl-test:{uuid.uuid4().hex[:8]}"
        dockerfile = "\n".join([f"FROM {base}", *lines]).encode()
        for told in client.api.build(fileobj=io.BytesIO(dockerfile), tag=tag, rm=True, decode=True):
            assert "error" not in told, told
        made.append(tag)
        return tag

    yield build
    for tag in made:
        client.images.remove(tag)
    client.close()


def python(program: str, *arguments: str) -> str:
    return json.dumps(["python3", "-c", program, *arguments])


def judged(host: str, steps: str, folder: Path) -> RunResult:
    text = f"title: An image\nhosts:\n  client: {{}}\n  server: {{{host}}}\nsteps:\n{steps}"
    return played(text, "docker", folder)


def output(result: RunResult) -> str:
    return result.history.processes["server"].output


def test_it_runs_as_it_is(make: Make, tmp_path: Path) -> None:
    image = make(
        f"ENTRYPOINT {python(TELL)}", 'CMD ["own", "words"]', "WORKDIR /srv/mine",
        "ENV WORD=hello", "USER 1234",
    )  # fmt: skip
    steps = "  - start: server\n  - wait: {process: {server: ok}}\n"
    own = judged(f"image: {image}", steps, tmp_path)
    assert own.result == "pass", report(own)
    assert output(own) == "args ['own', 'words'] /srv/mine hello 1234\n"
    changed = judged(
        f"image: {image}, run: [other], uid: 4321, env: {{WORD: bye}}", steps, tmp_path
    )
    assert output(changed) == "args ['other'] /srv/mine bye 4321\n"


def test_it_can_not_change_what_the_lab_lends_it(make: Make, tmp_path: Path) -> None:
    """Its next start is by the lab's own programs, whatever it wrote as root before."""
    image = make(f"ENTRYPOINT {python(MEDDLE)}")
    steps = "  - start: server\n  - wait: {process: {server: ok}}\n" * 2
    found = judged(f"image: {image}", steps, tmp_path)
    assert found.result == "pass", report(found)
    assert output(found).splitlines()[-3:] == ["Read-only"] * 3, output(found)


def test_its_health_is_not_checked(make: Make, tmp_path: Path) -> None:
    image = make(
        "HEALTHCHECK --interval=100ms CMD echo checked > /proc/1/fd/1",
        f"ENTRYPOINT {python('import time; time.sleep(3)')}",
    )
    steps = (
        "  - start: server\n  - wait: {process: {server: ok}}\n    within: 30s\n"
        "  - expect: {process: {server: {output: checked}}}\n"
    )
    result = judged(f"image: {image}", steps, tmp_path)
    assert [v.result for v in result.verdicts] == ["pass", "fail"], report(result)
    assert output(result) == ""


def lesson(name: str, **sets: str) -> list[Scenario]:
    return load(scenarios() / "servers" / f"{name}.yaml", sets)


@pytest.mark.ci  # four lessons, three of which wait
def test_the_lessons_judge_it_and_no_other(make: Make, tmp_path: Path) -> None:
    mine = make(f"ENTRYPOINT {python(SERVE)}", 'CMD ["8080"]')
    for case in (*lesson("half_close", image=mine, port="8080"),
                 *lesson("restart_time_wait", image=mine, port="8080")):  # fmt: skip
        result = run(case, "docker", tmp_path)
        assert result.result == "pass", report(result)
        assert output(result).startswith("my own server\n")
    # What the lesson's own server would answer for the image.
    dumb = make(f"ENTRYPOINT {python('import time; time.sleep(1000)')}")
    (case,) = lesson("half_close", image=dumb, port="8080")
    result = run(case, "docker", tmp_path)
    assert result.result == "fail", report(result)
    assert any("no sockets" in verdict.actual for verdict in result.verdicts)
