"""The live page in a real browser: login, what shows and when, keyboard, phone, hostile names."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from tests.service.conftest import Peer
from tests.service.http_server import listening
from tests.service.test_operations import events, output, report, result

from broker_access import session_broker
from browser import Browser, browser
from databases import make_migrated
from flux_endpoint.protocol.messages import unpack
from flux_endpoint.protocol.queues import commands_queue
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from waiting import until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.browser]

#: Below this path of a proxy; the service itself knows nothing of it.
PREFIX = "/flux/cluster"
#: What a hostile user could call a function, and raise.
SCRIPT = "<img src=x onerror=document.title='owned'>"


class Prefixed:
    """A proxy that serves an application below a path."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            path = scope["path"].removeprefix(PREFIX)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


@dataclass
class Shown:
    """A service with tasks, and a window that is logged in."""

    window: Browser
    rest: httpx.Client
    peer: Peer
    endpoint: str
    function: str
    url: str
    app: Any

    def submit(self, function: str = "") -> tuple[str, str]:
        """Submit a task; return its group and its id."""
        name = function or self.function
        body = {"tasks": {name: ["8\n00\ngAQp\n8\n00\ngAR9\n"]}}
        answer = self.rest.post(f"/v3/endpoints/{self.endpoint}/submit", json=body).json()
        return answer["task_group_id"], answer["tasks"][name][0]

    def register(self, name: str) -> str:
        code = {"function_name": name, "function_code": "12\n01\ngASVabcd\n"}
        return str(self.rest.post("/v3/functions", json=code).json()["function_uuid"])

    def go(self, place: str) -> None:
        self.window.run("location.hash = arguments[0]", place)


@pytest.fixture(scope="module")
def shown(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    directory = tmp_path_factory.mktemp("page")
    make_migrated(directory / "service.db")
    database = Database(directory / "service.db")
    with database.write() as connection:
        token = users.create_token(connection, "ada")
    database.close()
    with contextlib.ExitStack() as stack:
        amqp_url = stack.enter_context(broker.virtual_host())
        settings = ServiceSettings(
            database_url=directory / "service.db",
            amqp_url=amqp_url,
            **session_broker.settings(amqp_url),
        )
        app = create_app(settings)
        port = stack.enter_context(listening(Prefixed(app)))
        url = f"http://127.0.0.1:{port}{PREFIX}"
        headers = {"Authorization": f"Bearer {token}"}
        rest = stack.enter_context(
            httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)
        )
        peer = Peer(amqp_url)
        stack.callback(peer.connection.close)
        until(lambda: rest.get("/health").status_code == 200)
        window = stack.enter_context(browser(directory))
        window.open(f"{url}/")
        window.shows("Log in")
        code = rest.post("/v3/page/code", json={}).json()["code"]
        window.open(f"{url}/#login={code}")
        window.shows("Unfinished")
        metadata = {"flux_endpoint_version": "1", "output_on_request": True}
        made = {"endpoint_name": "lab", "metadata": metadata}
        endpoint = rest.post("/v3/endpoints", json=made).json()["endpoint_id"]
        found = Shown(window, rest, peer, endpoint, "", url, app)
        found.function = found.register("simulate")
        peer.send_report(
            endpoint, report(endpoint, total_workers=4, idle_workers=3, executor="flux")
        )
        yield found
        # Nothing was blocked by the policy, and nothing failed in the scripts.
        told = [each for each in window.complaints() if "401" not in each]
        assert not told


def test_the_login_leaves_no_secret_where_scripts_or_others_find_it(shown: Shown) -> None:
    assert shown.window.run("return location.href") == f"{shown.url}/#/"
    assert shown.window.run("return document.cookie") == ""
    assert shown.window.run("return Object.entries(localStorage).flat().join()") in (
        "", "flux-endpoint-theme,",
    )  # fmt: skip
    (cookie,) = shown.window.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert cookie["path"] == f"{PREFIX}/page"


def test_what_happens_shows_without_reloading(shown: Shown) -> None:
    window = shown.window
    shown.go("#/")
    window.shows("lab", ".cards")
    window.shows("1 busy, 3 idle", ".cards")
    window.run("window.isTheSamePage = true")
    _, task_id = shown.submit()
    window.shows("waiting", "#main")
    shown.peer.send_events(
        shown.endpoint, events(task_id, ("submit", time.time()), ("start", time.time()))
    )
    window.shows("running", "#main")
    shown.peer.send_result(shown.endpoint, result(task_id, "Traceback\nOSError: no such mesh"))
    window.shows("OSError: no such mesh", "#main")
    assert window.run("return window.isTheSamePage") is True


def test_texts_of_others_are_texts(shown: Shown) -> None:
    window = shown.window
    _, task_id = shown.submit(shown.register(SCRIPT))
    shown.peer.send_events(shown.endpoint, events(task_id, (SCRIPT, 1.0)))
    shown.peer.send_result(shown.endpoint, result(task_id, SCRIPT))
    places = {
        f"#/tasks?function={SCRIPT[:4]}": "tbody",
        f"#/task/{task_id}": ".events",
        "#/": "#main",
    }
    for place, selector in places.items():
        shown.go(place)
        window.shows(SCRIPT, selector)
    assert window.run("return document.querySelectorAll('main img').length") == 0
    assert "owned" not in window.run("return document.title")


def test_filters_are_in_the_address_and_a_task_has_its_page(shown: Shown) -> None:
    window = shown.window
    group, task_id = shown.submit()
    shown.peer.send_result(shown.endpoint, result(task_id, ran=(time.time() - 2, time.time())))
    until(lambda: shown.rest.get(f"/v2/tasks/{task_id}").json()["status"] == "success")
    shown.go("#/tasks")
    window.shows("simulate", "tbody")
    window.click('[data-state="success"]')
    until(lambda: "failed" not in window.text("tbody"))
    assert "state=success" in window.run("return location.hash")
    window.type("#group", group)
    until(lambda: group in window.run("return location.hash"))
    until(lambda: window.run("return document.querySelectorAll('tbody tr').length") == 1)
    window.click("tbody a")
    window.shows("result stored")
    assert task_id in window.text("#main")
    window.run("history.back()")
    until(lambda: window.run("return document.querySelector('#group')?.value") == group)


def test_the_output_of_a_running_task_shows_as_it_comes(shown: Shown) -> None:
    window, peer, streams = shown.window, shown.peer, shown.app.state.output_streams
    _, task_id = shown.submit()
    shown.go(f"#/task/{task_id}")
    queue = commands_queue(shown.endpoint)
    until(lambda: getattr(unpack(peer.take(queue).body), "task_id", None) == UUID(task_id))
    peer.send_events(shown.endpoint, output(task_id, stdout=(0, 7, f"{SCRIPT[:5]}1\n")))
    window.shows(f"{SCRIPT[:5]}1", ".live-output")
    assert window.run("return document.querySelector('.live-output pre').role") == "log"
    many = "".join(f"step {number}\n" for number in range(2, 400))
    peer.send_events(
        shown.endpoint,
        output(task_id, stdout=(7, 7 + len(many), many), stderr=(9, 12, "oh\n")),
    )
    window.shows("step 399", ".live-output")
    window.shows("oh", ".live-output section:last-child")
    assert "step 299" not in window.text(".live-output")
    assert "Earlier lines are not shown." in window.text(".live-output")
    shown.go("#/")
    until(lambda: not streams.open)  # nobody follows it any more
    shown.go(f"#/task/{task_id}")
    window.shows("step 399", ".live-output")
    peer.send_events(shown.endpoint, output(task_id, attempt=2, stdout=(0, 6, "again\n")))
    window.shows("step 399\n[... attempt 2 begins ...]\nagain\n", ".live-output")
    peer.send_result(shown.endpoint, result(task_id, "Traceback\nValueError: over"))
    window.shows("ValueError: over", ".error")
    until(lambda: window.text(".live-output") == "")
    until(lambda: not streams.open)


def test_a_run_is_drawn(shown: Shown) -> None:
    now = time.time()
    shown.go("#/run")
    for start, end in ((now - 9, now - 5), (now - 8, now - 2), (now - 4, now - 1)):
        _, task_id = shown.submit()
        shown.peer.send_result(shown.endpoint, result(task_id, ran=(start, end)))
    until(lambda: shown.window.run("return document.querySelectorAll('.stream rect').length") >= 3)
    shown.window.shows("busy", ".nodes")


def test_the_keyboard_is_enough(shown: Shown) -> None:
    window, tab, enter = shown.window, "\ue004", "\ue007"
    shown.go("#/")
    window.shows("Newest tasks")
    window.run("location.reload()")  # the session goes on, and the keyboard begins at the top
    window.shows("Newest tasks")
    seen = []
    for _ in range(8):
        window.press(tab)
        seen.append(window.run("return document.activeElement.textContent.trim()"))
    assert seen[:5] == ["Skip to the content", "Flux Endpoint", "Overview", "Tasks", "Run"]
    window.run("document.querySelector('[data-view=tasks]').focus()")
    window.press(enter)
    window.shows("State", "th")
    unnamed = window.run(
        "return [...document.querySelectorAll('button, input, select, a')].filter((each) => "
        "!(each.ariaLabel || each.textContent.trim() || each.labels?.length)).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("place", ["#/", "#/tasks", "#/run"])
def test_it_fits_a_phone_and_is_readable_in_both_themes(
    shown: Shown, theme: str, place: str
) -> None:
    window = shown.window
    window.resize(360, 740, scale=2, phone=True)
    window.theme(theme)
    try:
        shown.go(place)
        window.shows("simulate", "#main")
        wide = window.run("return document.documentElement.scrollWidth")
        assert wide <= 360
        contrast = window.run(_CONTRAST)
        assert contrast >= 4.5
    finally:
        window.devtools("Emulation.clearDeviceMetricsOverride")
        window.theme("light")


#: The least contrast (WCAG 2) of a text that shows with what is behind it.
_CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (each) => { const c = each / 255;
  return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = (colour) => colour.slice(0, 3).map(linear)
  .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const c = parse(getComputedStyle(each).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
  return [255, 255, 255];
};
let least = 21;
for (const each of document.querySelectorAll("main *, header *")) {
  const text = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!text || !each.checkVisibility() || each.closest("svg")) continue;
  const both = [light(parse(getComputedStyle(each).color)), light(behind(each))];
  const [one, other] = both.sort((a, b) => b - a);
  least = Math.min(least, (one + 0.05) / (other + 0.05));
}
return least;
"""


def test_logging_out_ends_the_session(shown: Shown) -> None:
    shown.window.click("#logout")
    shown.window.shows("Log in")
    assert shown.window.cookies() == []
    shown.window.open(f"{shown.url}/#/tasks")
    shown.window.shows("Log in")
