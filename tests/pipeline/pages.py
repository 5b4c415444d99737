"""A page in a headless Chromium: what it complains of, what is wider than the screen, which texts lie on others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = {"phone": 390, "tablet": 820, "desktop": 1440}
SCHEMES = ("light", "dark")
LOOK = """() => {
  const rects = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, holder = node.parentElement;
    if (!node.data.trim() || holder.closest('.text, pre, .scroll')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) if (box.width && box.height) rects.push([box, node.data]);
  }
  const overlaps = [];
  rects.forEach(([one, text], place) => rects.slice(place + 1).forEach(([other, covered]) => {
    const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
    const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
    if (wide > 1 && high > 0.35 * Math.min(one.height, other.height)) overlaps.push(`${text} | ${covered}`);
  }));
  const outside = [];
  document.querySelectorAll('svg text').forEach(each => {
    const box = each.getBoundingClientRect(), frame = each.closest('svg').getBoundingClientRect();
    if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.bottom > frame.bottom + 2)
      outside.push(each.textContent);
  });
  return {
    width: document.documentElement.scrollWidth, screen: innerWidth, texts: rects.length, overlaps, outside,
    drawings: document.querySelectorAll('svg').length,
  };
}"""


def chromium_path() -> str | None:
    """The browser that is installed here, if there is one."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


def looks(opened: Any, file: Path, shots: Path | None = None) -> Iterator[dict[str, Any]]:
    """Open the page and measure it at every width in light and dark; pictures go into `shots`.

    What it asks of a network is a complaint.
    """
    page = opened.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
    try:
        page.goto(file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        for name, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                yield {**page.evaluate(LOOK), "complaints": complaints}
                if shots is not None:
                    page.screenshot(path=shots / f"{file.stem}-{name}-{scheme}.png", full_page=True)
    finally:
        page.close()
