# SPDX-License-Identifier: Apache-2.0
"""The page's HTML for those who use no mouse or no eyes: everything that can be operated is reached by the keyboard and has a name."""

from __future__ import annotations

import itertools
from html.parser import HTMLParser
from pathlib import Path

PAGE = Path(__file__).parents[3] / "ziggurat" / "server" / "static" / "index.html"
OPERABLE = ("button", "input", "textarea", "select", "a", "summary")
FOCUSABLE_REGIONS = ("log", "region")
VOID = ("input", "img", "meta", "link", "br", "hr")


class Element:
    """Tag, attributes, the elements around it, and all text inside."""

    def __init__(self, tag: str, attributes: dict[str, str | None], parents: list[Element]) -> None:
        self.tag, self.attributes, self.parents, self.text = tag, attributes, parents, ""

    def __getitem__(self, name: str) -> str:
        return self.attributes.get(name) or ""


class Reader(HTMLParser):
    """All elements of a document, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), list(self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def read() -> list[Element]:
    reader = Reader()
    reader.feed(PAGE.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader.elements


ELEMENTS = read()
IDS = {element["id"]: element for element in ELEMENTS if element["id"]}


def name_of(element: Element) -> str:
    """What a screen reader calls it; a placeholder is not a name."""
    around = [parent.text for parent in element.parents if parent.tag == "label"]
    by_id = [each.text for each in ELEMENTS if each.tag == "label" and element["id"] and each["for"] == element["id"]]
    named_by = [IDS[name].text for name in element["aria-labelledby"].split()]
    inside = [] if element.tag in ("input", "textarea", "select") else [element.text]
    return " ".join([element["aria-label"], *named_by, *around, *by_id, *inside]).strip()


def test_everything_operable_has_a_name() -> None:
    operable = [element for element in ELEMENTS if element.tag in OPERABLE]
    assert len(operable) >= 12
    assert [vars(element) for element in operable if not name_of(element)] == []


def test_the_keyboard_reaches_it_in_the_order_of_the_document() -> None:
    assert [element.tag for element in ELEMENTS if element["tabindex"] not in ("", "0")] == []
    handlers = [name for element in ELEMENTS for name in element.attributes if name.startswith("on")]
    assert handlers == []
    assert [each.tag for each in ELEMENTS if each["role"] == "button" and each.tag != "button"] == []
    assert [each.tag for each in ELEMENTS if each.tag == "a" and not each["href"]] == []


def test_regions_that_scroll_take_the_focus() -> None:
    regions = [element for element in ELEMENTS if element["role"] in FOCUSABLE_REGIONS]
    assert [element["role"] for element in regions] == ["log", "region"]
    assert all(element["tabindex"] == "0" and name_of(element) for element in regions)


def test_the_first_stop_leads_past_everything() -> None:
    first = next(element for element in ELEMENTS if element.tag in OPERABLE)
    assert first.tag == "a" and IDS[first["href"].removeprefix("#")].tag == "textarea"


def test_pictures_have_words_and_references_have_targets() -> None:
    assert all("alt" in element.attributes for element in ELEMENTS if element.tag == "img")
    assert all(name_of(element) for element in ELEMENTS if element["role"] == "img")
    references = [name for each in ELEMENTS for key in ("aria-labelledby", "for") for name in each[key].split()]
    assert references and set(references) <= set(IDS)
    all_ids = [element["id"] for element in ELEMENTS if element["id"]]
    assert len(set(all_ids)) == len(all_ids)


def test_language_title_and_headings() -> None:
    assert next(element for element in ELEMENTS if element.tag == "html")["lang"] == "en"
    assert [element.text for element in ELEMENTS if element.tag == "title"] == ["Ziggurat"]
    levels = [int(element.tag[1]) for element in ELEMENTS if element.tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
