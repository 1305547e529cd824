"""A headless Chromium for tests: the DevTools protocol through two pipes, so that no package is needed for it."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable", "chrome")
"""What the program is called, by who packages it."""

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars"),
)

TIMEOUT_S = 60


def find_chromium() -> str | None:
    """The browser that CHROMIUM names, or the first of NAMES that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab. problems: errors that the page or the console told, and requests that left the page."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser, self._session = browser, session
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result."""
        return self._browser.send(method, parameters, self._session, self._notice)

    def _notice(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(str(told["args"]))
        if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(told["entry"]))
        if method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("file:", "data:")):
            self.problems.append(f"asks for {told['request']['url']}")

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False, scale: float = 1.0) -> None:
        """Show a file in a window of this size, in pixels."""
        phone = width < 500
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited. Raises AssertionError where it throws."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never came true: {expression}"
            time.sleep(0.05)

    def hover(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Put the pointer over an element, at these parts of its width and height."""
        box = self._box(selector)
        x, y = box["x"] + across * box["width"], box["y"] + down * box["height"]
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def click(self, selector: str) -> None:
        """Press and release the left button over the middle of an element."""
        self.hover(selector)
        box = self._box(selector)
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **at)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option, by its value."""
        told = json.dumps([selector, value])
        self.evaluate(
            f"(([s, v]) => {{ const e = document.querySelector(s); e.value = v;"
            f" e.dispatchEvent(new Event('change')); }})({told})"
        )

    def _box(self, selector: str) -> dict[str, float]:
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'center'}); return e.getBoundingClientRect().toJSON(); })()"
        )
        assert found and found["width"] and found["height"], f"{selector} cannot be seen"
        box: dict[str, float] = found
        return box

    def screenshot(self, path: Path, selector: str | None = None) -> None:
        """A PNG of the whole page, or of an element of it."""
        clip = self.evaluate(
            "(() => { const e = SELECTOR ? document.querySelector(SELECTOR) : document.documentElement;"
            " const b = e.getBoundingClientRect();"
            " return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height, scale: 1}; })()".replace(
                "SELECTOR", json.dumps(selector)
            )
        )
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(told["data"]))


class Browser:
    """A running browser. Commands and events are JSON, each ended by a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._to_browser = os.pipe()
        self._from_browser, to_write = os.pipe()

        def as_3_and_4() -> None:
            os.dup2(os.dup(to_read), 3)  # through a third one: either may be 3 or 4 itself
            os.dup2(to_write, 4)

        self._process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=as_3_and_4,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest = 0, b""

    def page(self) -> Page:
        """A new tab."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        return Page(self, self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"])

    def send(
        self, method: str, parameters: dict[str, Any], session: str | None = None, notice: Any = lambda _event: None
    ) -> dict[str, Any]:
        """A command's result. notice: is told the events of the session that come before it."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        os.write(self._to_browser, json.dumps(command).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result
            if told.get("sessionId") == session:
                notice(told)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from_browser, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def close(self) -> None:
        with suppress(AssertionError, OSError):
            self.send("Browser.close", {})
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to_browser)
        os.close(self._from_browser)


@contextmanager
def running(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, which ends with the block."""
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
