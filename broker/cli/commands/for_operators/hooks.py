"""`gpu-broker hooks`: webhooks and messages to chats about the pool's events."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

import click
from redis.exceptions import RedisError

from agent_sdk.errors import BrokerUnavailable, Denied, LeaseError, OutcomeUnknown
from broker.cli import DENIED, FAILED, UNAVAILABLE
from broker.cli.hooks import registry
from broker.cli.store import output_option, show, way_out
from broker.hooks.operators import new_hook, row_of, tested
from broker.identity import user_at_host
from broker.text.screen import one_line, say
from broker.text.table import age, table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.hooks.registry import HooksSeen, Registry

STDIN: Final = "-"

LOOK: Final = "gpu-broker hooks list shows what was done"

HEADS: Final = ("NAME", "STATE", "BACKLOG", "DELIVERED", "EVENTS", "URL")


@click.group()
def hooks() -> None:
    """Send the pool's events to URLs: webhooks, Slack, Matrix, mail.

    A webhook gets each event as a CloudEvent in JSON, signed as Standard Webhooks has it, in order
    and at least once. One gpu-broker serve of the pool sends; another takes over when it dies. What
    is not taken is tried again, for a day; then the hook is disabled.

    \b
    Examples:
      gpu-broker hooks add https://ops.example/gpu --on expired,quarantined
      gpu-broker hooks add slack://xoxb-.../#gpus --on quarantined,xid --name chat
      gpu-broker hooks test chat
      gpu-broker hooks list
    """


@hooks.command("add")
@click.argument("url")
@click.option("--on", "events", help="Names of events, by commas; default all.")
@click.option("--name", default="", help="Its name: a-z, 0-9 and -; default a made one.")
@click.option(
    "--secret",
    default="",
    help="The key of its signatures, whsec_...; - reads it from stdin, where no other user of the "
    "machine sees it. Default: a new one, which is printed once.",
)
@output_option()
def add(url: str, events: str | None, name: str, secret: str, output: str) -> None:
    """Add a hook, and print its secret.

    It begins with the next event. The secret is not shown again.

    URL is https://... or http://..., or one of apprise: slack://, matrix://, mailto:// and others.

    \b
    Examples:
      gpu-broker hooks add https://ops.example/gpu --on expired,revoked --name ops
      pass show gpu-hook | gpu-broker hooks add https://ops.example/gpu --secret -
    """
    if secret == STDIN:
        secret = sys.stdin.readline().strip()

    async def act(found: Registry) -> tuple[Any, HooksSeen]:
        on = () if events is None else events.split(",")
        made = new_hook(url, name=name, on=on, secret=secret, by=user_at_host())
        return await found.add(made), await found.seen()

    added, seen = _done(act)
    row = row_of(added, seen.end)
    say(f"added {added.name}; try it: gpu-broker hooks test {added.name}", err=True)
    if added.secret:
        say("its secret, for the receiver; it is not shown again:", err=True)
    if output == "json" or added.secret:
        show(output, added.secret, row | {"secret": added.secret or None})


@hooks.command("list")
@output_option("name")
def list_(output: str) -> None:
    """List the hooks and their states.

    BACKLOG is how many events of the stream are before a hook.
    """
    seen = _done(lambda found: found.seen())
    rows = [row_of(hook, seen.end) for hook in seen.hooks]
    lines = [
        (x["name"], x["state"], x["backlog"], x["delivered"], ",".join(x["on"]) or "all", x["url"])
        for x in rows
    ]
    text = table(HEADS, [tuple(map(str, line)) for line in lines]) if rows else "no hooks"
    data = {"hooks": rows, "served": seen.served}
    show(output, text, data, [row["name"] for row in rows])


@hooks.command("show")
@click.argument("name")
@output_option()
def show_(name: str, output: str) -> None:
    """Show a hook: deliveries, last error, backlog."""

    async def act(found: Registry) -> tuple[Any, HooksSeen, int]:
        return await found.find(name), await found.seen(), await found.now_ms()

    hook, seen, now_ms = _done(act)
    row = row_of(hook, seen.end)
    lines = _lines(row, now_ms / 1000, served=seen.served)
    show(output, "\n".join(map(one_line, lines)), row)


def _lines(row: dict[str, Any], now: float, *, served: bool) -> list[str]:
    def last(at: float | None) -> str:
        return "" if at is None else f", the last {age(round((now - at) * 1000))} ago"

    lines = [
        f"{row['name']}: {row['state']}, to {row['url']}",
        f"events: {', '.join(row['on']) or 'all'}",
        f"delivered: {row['delivered']}{last(row['delivered_at'])}",
        f"backlog: {row['backlog']} events of the stream",
    ]
    if row["failed"]:
        lines.append(f"failed: {row['failed']} tries{last(row['error_at'])}")
        lines.append(f"last error: {row['error']}")
    if row["missed"]:
        lines.append(f"missed: {row['missed']} events fell out of the stream unsent")
    if row["disabled"]:
        lines.append(f"disabled: {row['disabled']}; gpu-broker hooks enable {row['name']}")
    if not served:
        lines.append("no broker delivers now: gpu-broker doctor")
    return lines


@hooks.command("remove")
@click.argument("name")
@output_option()
def remove(name: str, output: str) -> None:
    """Remove a hook.

    What was not delivered to it is dropped.
    """
    _done(lambda found: found.remove(name))
    show(output, f"removed {name}", {"removed": name})


@hooks.command("enable")
@click.argument("name")
@output_option()
def enable(name: str, output: str) -> None:
    """Try a disabled or failing hook again now.

    It goes on with the event after its last.
    """

    async def act(found: Registry) -> tuple[Any, HooksSeen]:
        return await found.enable(name), await found.seen()

    hook, seen = _done(act)
    show(output, f"{name} is tried again now", row_of(hook, seen.end))


@hooks.command("test")
@click.argument("name")
@output_option()
def test(name: str, output: str) -> None:
    """Send a test event, and show the answer.

    The broker that delivers sends it, so its network and its settings count.

    The exit code is 1 if it was not taken.
    """
    answer = _done(lambda found: tested(found, name))
    took = f"in {answer['took_s']:g} s"
    text = f"{'taken' if answer['delivered'] else 'not taken'}: {answer['said']}, {took}"
    lines = filter(None, (text, answer["answer"]))
    show(output, "\n".join(map(one_line, lines)), answer)
    if not answer["delivered"]:
        sys.exit(FAILED)


def _done(act: Callable[[Registry], Awaitable[Any]]) -> Any:
    """Do something with the pool's hooks; errors end the command with a sentence."""

    async def run() -> Any:
        async with registry() as found:
            return await act(found)

    try:
        return asyncio.run(run())
    except (LeaseError, ValueError) as error:
        say(f"gpu-broker hooks: {error}", err=True)
        if not isinstance(error, BrokerUnavailable | OutcomeUnknown | Denied):
            sys.exit(FAILED)
        if isinstance(error.__cause__, RedisError):  # else the error says what to do
            say(LOOK if isinstance(error, OutcomeUnknown) else way_out(error), err=True)
        sys.exit(DENIED if isinstance(error, Denied) else UNAVAILABLE)
