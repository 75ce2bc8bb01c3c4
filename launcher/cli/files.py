"""init, schema, offers, config: what can be written, and what is known."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import CurrencyOption, Output, OutputOption, PlainOption, console, money, print_json, wiring

if TYPE_CHECKING:
    from rich.console import Console

    from launcher.wiring import Wiring


def register(app: typer.Typer) -> None:
    app.command("init", help="Write a commented train.yaml to start from.")(init)
    app.command("schema", help="Print the JSON schema of train.yaml, for editors.")(schema)
    app.command("offers", help="The price book: what is offered where, and what is refused.")(offers)
    config = typer.Typer(name="config", help="The settings in force.", rich_markup_mode=None, no_args_is_help=True)
    config.command("show", help="Every setting and its value.")(show_config)
    app.add_typer(config)


def init(
    file: Annotated[Path, typer.Argument(help="where to")] = Path("train.yaml"),
    *,
    force: Annotated[bool, typer.Option("--force", help="overwrite")] = False,
) -> None:
    from launcher.adapters.yaml_spec import json_schema, template
    from launcher.errors import InputError, LaunchError, Problem

    schema_file = file.with_suffix(".schema.json")
    if file.exists() and not force:
        raise InputError([Problem("L125", "exists already", str(file), "choose another name, or --force")])
    try:
        import json

        file.write_text(template().replace("SCHEMA_FILE", schema_file.name), encoding="utf-8")
        schema_file.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise LaunchError(f"{file} cannot be written: {error.strerror}") from error
    console(stderr=True).print(f" {file} is there: fill it in, then `launch plan {file}`")


def schema() -> None:
    from launcher.adapters.yaml_spec import json_schema

    print_json(json_schema())


def offers(
    gpu: Annotated[str | None, typer.Argument(help="only this GPU type", show_default=False)] = None,
    *,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="let SkyPilot check which clouds are enabled, and fetch their prices")
    ] = False,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    from launcher.render.offers import offers_json, show_offers

    wired = wiring()
    if refresh:
        with redirect_stdout(sys.stderr):  # SkyPilot prints what it does
            _refresh(wired, console(stderr=True, plain=plain))
    listed, left_out = wired.offers(gpu), wired.price_book.left_out()
    if output is Output.JSON:
        return print_json(offers_json(listed, left_out=left_out))
    shown = money(currency, wired)
    return show_offers(console(plain=plain), listed, shown, today=wired.today, left_out=left_out)


def _refresh(wired: Wiring, talk: Console) -> None:
    """Ask SkyPilot, cloud by cloud; what cannot be fetched is said and stays as it is."""
    from launcher.adapters.skypilot_clouds import renew
    from launcher.render.offers import RENEWALS

    with talk.status("SkyPilot checks which clouds are enabled here …"):
        clouds = wired.check_clouds()
    talk.print(f" enabled here: {', '.join(clouds.enabled) or 'no cloud; `sky check` says why'}", soft_wrap=True)
    for number, cloud in enumerate(clouds.priced, start=1):
        with talk.status(f"prices of {cloud}, {number} of {len(clouds.priced)} …"):
            renewal = renew(cloud)
        talk.print(f" {cloud}: {RENEWALS[renewal]}", soft_wrap=True)


def show_config(
    *,
    origin: Annotated[bool, typer.Option("--origin", help="where each value comes from")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    from launcher.adapters.settings import load_settings

    layered = load_settings()
    values = layered.settings.model_dump(mode="json")
    if output is Output.JSON:
        return print_json({"schema": "launch/config/v1", "values": values, "origins": dict(layered.origins)})
    out = console()
    for name, value in values.items():
        out.print(
            f"{name} = {value}" + (f"    # {layered.origins[name]}" if origin else ""), highlight=False, soft_wrap=True
        )
    return None
