"""Check the built site: links and assets in the HTML, then every page in headless Chromium.

    python scripts/check_site.py build/site/html

The first part needs nothing but the files: each `href`, `src` and anchor leads to something that is
there, and no page loads anything from another host. The second part opens pages as files in
Chromium, reads its console over the DevTools pipe, and searches for a word. Without Chromium
(`CHROMIUM` may name one) it says so and is left out.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["broken", "console", "main"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# What a page loads by itself: (tag, attribute). A link that is clicked may lead elsewhere.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
SEARCHED = "verdict"
SECONDS = 60.0  # until Chromium has answered
SEARCH_SECONDS = 20.0


class _Page(HTMLParser):
    """What a page refers to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.targets.append((tag, name, value))


def broken(html: Path) -> list[str]:
    """Return what is wrong with links and assets, one line each."""
    pages = {path: _Page(path.read_text()) for path in sorted(html.rglob("*.html"))}
    wrong = []
    for path, page in pages.items():
        for tag, name, target in page.targets:
            parts = urlsplit(target)
            where = f"{path.relative_to(html)}: <{tag} {name}={target!r}>"
            if parts.scheme or parts.netloc:
                if (tag, name) in LOADED and parts.scheme != "data":
                    wrong.append(f"{where} is loaded from another host")
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file():
                wrong.append(f"{where} leads to no file")
            elif (
                parts.fragment
                and file in pages
                and unquote(parts.fragment) not in (pages[file].anchors)
            ):
                wrong.append(f"{where} leads to no anchor")
    styles = {path: path.read_text() for path in sorted(html.rglob("*.css"))}
    return wrong + [
        f"{path.relative_to(html)} loads from another host"
        for path, text in styles.items()
        if "url(http" in text or "@import" in text
    ]


class _Browser:
    """Chromium without a window, spoken to over the DevTools pipe."""

    def __init__(self, command: str, profile: str) -> None:
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        options = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"]
        options += ["--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        # Chromium reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", command, *options],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self.read, self.write, self.rest, self.number = read_here, write_here, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to a command; events that come before it are kept."""
        self.number += 1
        command: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.write, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self.number:
                if "error" in answer:
                    error = f"{method}: {answer['error']}"
                    raise RuntimeError(error)
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded; the events are those since."""
        self.events.clear()
        loader = self.call("Page.navigate", url=url)["loaderId"]
        deadline = time.monotonic() + SECONDS
        while not any(_is_loaded(event, loader) for event in self.events):
            self.events.append(self._next(deadline))
        self.evaluate("1")  # answered after what the page did meanwhile

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                message = f"Chromium said nothing for {SECONDS:.0f} s"
                raise TimeoutError(message)
            data = os.read(self.read, 1 << 16)
            if not data:
                message = "Chromium ended"
                raise RuntimeError(message)
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        os.close(self.write)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        os.close(self.read)


def console(html: Path, command: str) -> list[str]:
    """Open every page, search for a word, and return what went wrong."""
    pages = sorted(page for page in html.rglob("*.html") if "_static" not in page.parts)
    wrong = []
    with tempfile.TemporaryDirectory() as profile:
        browser = _Browser(command, profile)
        try:
            for page in pages:
                browser.open(page.as_uri())
                name = str(page.relative_to(html))
                wrong += [f"{name}: {line}" for line in _complaints(browser.events)]
            browser.open(f"{(html / 'search.html').as_uri()}?q={SEARCHED}")
            deadline = time.monotonic() + SEARCH_SECONDS
            query = "document.querySelectorAll('#search-results li').length"
            while not browser.evaluate(query) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not browser.evaluate(query):
                wrong.append(f"the search for {SEARCHED!r} finds nothing")
            wrong += [f"search: {line}" for line in _complaints(browser.events)]
        finally:
            browser.close()
    sys.stdout.write(f"{len(pages)} pages opened in {command}, and a search\n")
    return wrong


def _is_loaded(event: dict[str, Any], loader: str) -> bool:
    params = event.get("params", {})
    is_lifecycle = event.get("method") == "Page.lifecycleEvent"
    return is_lifecycle and (params["loaderId"], params["name"]) == (loader, "load")


def _complaints(events: list[dict[str, Any]]) -> list[str]:
    """Everything in the console, exceptions, failed loads, and requests to other hosts."""
    found = []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            words = [str(arg.get("value", arg.get("description"))) for arg in params["args"]]
            found.append(f"console.{params['type']}: {' '.join(words)}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            found.append(f"exception: {text.partition(chr(10))[0]}")
        elif method == "Log.entryAdded":
            entry = params["entry"]
            found.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if urlsplit(url).scheme not in ("file", "data", "about", "blob"):
                found.append(f"asks for {url}")
    return found


def main(html: Path) -> int:
    """Check a built site; return 0 if nothing is wrong."""
    wrong = broken(html)
    command = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if command:
        wrong += console(html, command)
    else:
        sys.stdout.write(
            "\n*** NO CHROMIUM FOUND: links and assets were checked, the console was NOT.\n"
            "*** Install one (Debian: apt-get install chromium) or name it in CHROMIUM.\n\n"
        )
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    sys.stdout.write(f"site: {len(wrong)} faults in {html}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
