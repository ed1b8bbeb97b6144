"""`flux-endpoint dashboard`: a link to the service's live page, which logs in."""

from __future__ import annotations

import webbrowser

import click

from flux_endpoint.cli.exits import ExitCode
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import shown_duration


@click.command()
@click.option("--open", "opens", is_flag=True, help="Open the link in a browser of this machine.")
@json_option
def dashboard(*, opens: bool, as_json: bool) -> int:
    """Print a link to the service's live page: what runs, what waits, what failed.

    The link logs in the first browser that opens it, within two minutes; the token itself is not in
    it. The browser then stays logged in for twelve hours.
    """
    api = OperatorApi()
    code = api.login_code()
    url = f"{api.url}/#login={code.code}"
    if as_json:
        put_json({"url": url, "expires_in": code.expires_in})
    else:
        click.echo(url)
        valid = shown_duration(code.expires_in)
        click.echo(f"It logs one browser in, and is valid for {valid}.", err=True)
    if opens and not webbrowser.open(url):
        click.echo("No browser can be opened here: open the link yourself.", err=True)
        return ExitCode.FAILED
    return ExitCode.OK
