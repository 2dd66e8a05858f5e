"""A page of HTML as a test reads it."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        #: Elements that have a label: tag, text, and the place that it leads to.
        self.labels: list[tuple[str, str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "path", "rect"):
            self._open.append(tag)
        if tag in ("th", "dt"):
            self.labels.append((tag, "", None))
        if tag == "a" and self._label is not None:
            self.labels[-1] = (*self.labels[-1][:2], dict(attrs)["href"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    @property
    def _label(self) -> str | None:
        """The element with a label that is open."""
        return next((tag for tag in self._open if tag in ("th", "dt")), None)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if self._label is not None:
            tag, text, place = self.labels[-1]
            self.labels[-1] = (tag, text + data, place)
