"""A real browser without a screen: Chromium, driven by chromedriver's W3C WebDriver protocol.

Tests that need it are marked `browser`; where either program is missing they are reported as not
run.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from not_run import leave_out
from ports import reserved_port
from waiting import until

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
]  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (CHROMIUM and DRIVER):
        reason = "tests in a browser: chromium or chromedriver is missing (CONTRIBUTING.md)"
        leave_out(
            config, items, lambda item: reason if item.get_closest_marker("browser") else None
        )


class Browser:
    """A window of Chromium.

    Args:
        driver: URL of chromedriver.
        profile: a directory of its own.
    """

    def __init__(self, driver: str, profile: Path) -> None:
        self._http = httpx.Client(base_url=driver, timeout=60, trust_env=False)
        options = {
            "binary": CHROMIUM,
            "args": [*_FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, path, json=body)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def _do(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(
            method, self._session + path, {} if method == "POST" and body is None else body
        )

    def open(self, url: str) -> None:
        """Load a page."""
        self._do("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of JavaScript."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str = "body") -> str:
        """Return the visible text of the first such element; empty if there is none."""
        script = "return document.querySelector(arguments[0])?.innerText || ''"
        return str(self.run(script, selector))

    def shows(self, text: str, selector: str = "body") -> None:
        """Wait until an element has a text."""
        until(lambda: text in self.text(selector))

    def click(self, selector: str) -> None:
        """Click the first such element."""
        self._do("POST", f"/element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Type into the first such element."""
        self._do("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press and release keys, whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._do("POST", "/actions", body)

    def _find(self, selector: str) -> str:
        how = {"using": "css selector", "value": selector}
        return str(self._do("POST", "/element", how)[_ELEMENT])

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Return the answer to a command of the DevTools protocol."""
        body = {"cmd": command, "params": parameters}
        return self._do("POST", "/goog/cdp/execute", body)

    def resize(self, width: int, height: int, *, scale: float = 1, phone: bool = False) -> None:
        """Give the page a size, in CSS pixels."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=phone,
        )  # fmt: skip

    def theme(self, name: str) -> None:
        """Have the system prefer a theme, "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the visible part."""
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def cookies(self) -> list[dict[str, Any]]:
        """Return all cookies of the browser."""
        found: list[dict[str, Any]] = self.devtools("Storage.getCookies")["cookies"]
        return found

    def complaints(self) -> list[str]:
        """Return what the console has said since the last call."""
        said = self._do("POST", "/se/log", {"type": "browser"})
        return [str(each["message"]) for each in said]

    def close(self) -> None:
        """End the browser."""
        self._do("DELETE", "")
        self._http.close()


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Run a browser, with its files in a directory."""
    assert DRIVER is not None
    with reserved_port() as port:
        driver = subprocess.Popen(
            [DRIVER, f"--port={port}", "--silent"], stdout=subprocess.DEVNULL, cwd=directory
        )
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return bool(httpx.get(f"{url}/status", trust_env=False).json()["value"]["ready"])
            return False

        try:
            until(ready)
            window = Browser(url, directory / "profile")
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
            driver.wait(30)
