"""Looks at the built site in a real browser: links, anchors, widths of pages, search, and screenshots to check by eye.

    uv run --with playwright docs/check_site.py [--browser /usr/bin/chromium] [--screenshots FOLDER]

Run it after the site is built. It opens every page that a link leads to, at the widths of a phone and of a laptop.
"""

import argparse
import http.server
import threading
from functools import partial
from pathlib import Path
from urllib.parse import urldefrag, urljoin

from playwright.sync_api import Page, sync_playwright

SITE = Path(__file__).parent / "_build"
WIDTHS = (400, 1280)
SEARCHED, FOUND = "AutoFlow", "api/guides.html"
LINKS = "links => links.map(link => link.href)"
IDS = "elements => elements.map(element => element.id)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def serve() -> str:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def problems_of_widths(page: Page, path: str, screenshots: Path | None) -> list[str]:
    problems = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        needed = page.evaluate("document.documentElement.scrollWidth")
        if needed > width:
            problems.append(f"{path} scrolls sideways at {width} px: needs {needed}")
        if screenshots:
            name = path.replace("/", "-").removesuffix(".html")
            page.screenshot(path=screenshots / f"{name}-{width}.png", full_page=True)
    return problems


def crawl(page: Page, root: str, screenshots: Path | None) -> list[str]:
    """Every page within the site that a link leads to, and every anchor that a link names."""
    problems, todo, ids, wanted = [], [root + "index.html"], {}, set()
    while todo:
        address = todo.pop()
        if address in ids:
            continue
        path = address.removeprefix(root)
        is_page = path.endswith(".html")
        answer = page.goto(address) if is_page else page.request.get(address)
        if answer is None or not answer.ok:
            problems.append(f"{path}: not there")
        ids[address] = {""} | set(page.eval_on_selector_all("[id]", IDS) if is_page else [])
        if not is_page:
            continue
        problems += problems_of_widths(page, path, screenshots)
        for link in page.eval_on_selector_all("a[href]", LINKS):
            target, anchor = urldefrag(urljoin(address, link))
            if target.startswith(root):
                wanted.add((path, target, anchor))
                todo.append(target)
    print(f"{len(ids)} pages and files, {len(wanted)} links")
    for path, target, anchor in sorted(wanted):
        if anchor not in ids[target]:
            problems.append(f"{path} links to {target.removeprefix(root)}#{anchor}, which is not there")
    return problems


def problems_of_search(page: Page, root: str) -> list[str]:
    page.goto(f"{root}search.html?q={SEARCHED}")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    page.wait_for_timeout(2000)  # results come one by one
    found = page.eval_on_selector_all("#search-results li a", LINKS)
    print(f"search for {SEARCHED}: {len(found)} results")
    return [] if any(FOUND in link for link in found) else [f"search for {SEARCHED} does not find {FOUND}: {found}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--screenshots", type=Path)
    options = parser.parse_args()
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    root = serve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: print(f"script error: {error}"))
        problems = crawl(page, root, options.screenshots) + problems_of_search(page, root)
        browser.close()
    for problem in problems:
        print(problem)
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
