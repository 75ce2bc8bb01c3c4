"""replay: what a run would cost, or would have cost, under other policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import CurrencyOption, Output, OutputOption, PlainOption, console, money, print_json, wiring

if TYPE_CHECKING:
    from launcher.core.replays.replay import Question, Replay
    from launcher.wiring import Wiring

MOST_FUTURES = 10_000


def register(app: typer.Typer) -> None:
    app.command("replay", help="What a run would have cost under other policies, as a table and a picture.")(replay)


def replay(
    what: Annotated[str, typer.Argument(metavar="RUN|train.yaml", help="a run's id, or a file", show_default=False)],
    *,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="beside spotlaunch; may be repeated; default: all"),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="a record of capacity, CSV or JSON: instead of drawn weather")
    ] = None,
    starts: Annotated[
        int, typer.Option("--starts", min=1, max=MOST_FUTURES, help="hours of the trace to begin at")
    ] = 1,
    futures: Annotated[
        int | None, typer.Option("--futures", min=1, max=MOST_FUTURES, help="that are drawn; default: 101")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="of what is drawn; the same one gives the same")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="each decision, in one sentence")] = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="write the picture there")] = None,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    from launcher.render import replay as render

    wired = wiring()
    shown = money(currency, wired)
    question = _question(policy, trace, starts=starts, futures=futures, seed=seed)
    found = _replay(wired, what, question, plain=plain)
    if svg:
        _write(svg, render.replay_svg(found, shown))
    if output is Output.JSON:
        return print_json(render.replay_json(found))
    return render.show_replay(console(plain=plain), found, shown, explain=explain)


def _question(
    policy: list[str] | None, trace: Path | None, *, starts: int, futures: int | None, seed: int | None
) -> Question:
    from launcher.adapters.trace_file import load_trace
    from launcher.core.replays.replay import NUM_FUTURES, SEED, Question

    return Question(
        names=tuple(policy or ()),
        count=futures or NUM_FUTURES,
        seed=SEED if seed is None else seed,
        trace=load_trace(trace) if trace else None,
        starts=starts,
    )


def _replay(wired: Wiring, what: str, question: Question, *, plain: bool) -> Replay:
    from launcher import api
    from launcher.cli.runs import full_id
    from launcher.render.plan import listing

    if not (what.endswith((".yaml", ".yml")) or Path(what).is_file()):
        return api.replay_run(wired, full_id(wired, what), question)
    with listing(console(stderr=True, plain=plain)) as progress:
        return api.replay_spec(wired, Path(what), question, progress=progress)


def _write(path: Path, text: str) -> None:
    from launcher.errors import LaunchError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LaunchError(f"{path} cannot be written: {error.strerror}") from error
