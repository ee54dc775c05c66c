"""The command `labctl tour`: shipped lessons in an order, each with a question before it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from labctl.cli.arguments import backend_option, offering
from labctl.cli.exits import EXIT
from labctl.ground.data import dataclass

if TYPE_CHECKING:
    from labctl.run.places import Place


@dataclass(frozen=True)
class Stop:
    """A lesson, of which the first case runs: what will happen, and a question that the run
    answers. Neither says what the lesson's title does."""

    lesson: str
    story: str
    question: str


STOPS = (
    Stop(
        "process_end",
        "A server and a client are connected. The server's process returns from main. It closes\n"
        "nothing by itself.",
        "Does the client learn of it, and what will ss show on the two sides?",
    ),
    Stop(
        "time_wait_on_the_client",
        "The client closes its connection, and then the server does. At once the server is killed\n"
        "and started again, without any option.",
        "Which side will ss show in TIME-WAIT, and can the server bind?",
    ),
    Stop(
        "real_server",
        "Now a server in C is killed while it is connected, and then the client closes. It is\n"
        "started again.",
        "What will ss show on its port, and what does its bind return?",
    ),
    Stop(
        "fin_wait_2",
        "The same, but the client is blocked: it never closes. Here tcp_fin_timeout is 5 seconds.",
        "In which states will ss show the two sides, and for how long?",
    ),
    Stop(
        "fin_wait_1_zero_window",
        "A server writes without end, and its client never reads. Then the server is killed.",
        "Does its FIN arrive, and what will ss show on the two sides?",
    ),
    Stop(
        "unread_data",
        "The client has sent something that the server never read. The server closes.",
        "What does the client get, and will ss show a TIME-WAIT?",
    ),
    Stop(
        "lost_last_ack",
        "Both sides close in order, the server first. The very last segment, its ACK, is lost.",
        "Who notices, who answers, and what will ss show on the server meanwhile?",
    ),
    Stop(
        "keepalive_dead_peer",
        "A client closes its side, and its link is cut. The server has SO_KEEPALIVE, and sends\n"
        "nothing.",
        "Will ss show the server's side for ever?",
    ),
)


NAMES = [stop.lesson for stop in STOPS]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=offering(lambda: NAMES))
@backend_option
def tour(names: tuple[str, ...], backend: str) -> int:
    """Take a tour: lessons in an order, each with a question, the run as a picture, the answer.

    Guess before you press Enter. NAME chooses lessons of the tour.

    \b
    Examples:
      labctl tour
      labctl tour unread_data --backend netns
    """
    from labctl.ground.errors import UsageError
    from labctl.judge.check import overall
    from labctl.language.values import unknown
    from labctl.run.places import place

    for name in names:
        if name not in NAMES:
            raise UsageError(unknown("lesson of the tour", name, NAMES))
    where = place(backend, None, None, False)
    stops = [stop for stop in STOPS if stop.lesson in (names or NAMES)]
    results = []
    for number, stop in enumerate(stops, 1):
        click.secho(f"\n{number} of {len(stops)}  {stop.lesson}", bold=True)
        click.echo(f"\n{stop.story}\n")
        click.secho(f"? {stop.question}", bold=True)
        if sys.stdin.isatty():
            input("  Enter runs it: ")
        results.append(_shown(stop, where))
    return EXIT[overall(results)]


def _shown(stop: Stop, where: Place) -> str:
    """Runs it, draws it, and gives the answer. Returns the result."""
    from labctl.cli import chosen
    from labctl.cli.arguments import find
    from labctl.ground.resources import scenarios
    from labctl.judge.recorded import reloaded
    from labctl.reports.progress import Screen
    from labctl.reports.terminal import print_ladders
    from labctl.run import dispatch, workflow
    from labctl.run.orders import Orders

    case, *_ = workflow.load_all(find([stop.lesson], scenarios()), {})
    with workflow.interruptible():
        (result,) = dispatch.run([case], where, Orders(Screen()))
    chosen.remember([result.folder])
    if result.result in ("skip", "error"):
        click.echo(f"{result.result}: {result.reason}")
    else:
        click.echo()
        print_ladders([reloaded(result)])
    click.secho(f"= {case.title}", bold=True)
    click.echo(f"\n{case.about}\n\n  labctl show {stop.lesson}: every step, with its reasons")
    return result.result
