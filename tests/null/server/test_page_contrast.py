# SPDX-License-Identifier: Apache-2.0
"""The page's colours in both themes, by the formula of WCAG 2.2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).

Text is 4.5:1 on whatever it may stand on, parts of the map and edges of fields 3:1. The colours are read from the rules of the style
sheets, so a new one is checked without being named here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[3] / "ziggurat" / "server" / "static"
TEXT_RATIO, GRAPHIC_RATIO = 4.5, 3.0
# What text without a background of its own may stand on.
SURFACES = ("var(--ground)", "var(--surface)", "var(--raised)")
# Parts that show bytes or state; their names are the classes that the script gives them.
GRAPHIC = re.compile(r"\.(is-\w+|c\d|dot|bar|grid|pss)\b|::after")
# What is free is the absence of a part, and the legend says it in words.
EMPTY = re.compile(r"\.is-(poolfree|reserve)$|\.track$|\.grid i$")
Colour = tuple[float, float, float]


def rules() -> list[tuple[str, dict[str, str]]]:
    """Selector and declarations of every rule of the style sheets."""
    css = "\n".join((STATIC / name).read_text() for name in ("style.css", "map.css"))
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    found = []
    for selector, block in re.findall(r"([^{}]+)\{([^{}]*)\}", css):
        pairs = (line.partition(":") for line in block.split(";") if ":" in line)
        found.append((selector.strip(), {name.strip(): value.strip() for name, _, value in pairs}))
    return found


RULES = rules()
THEMES = {
    name: {key: value for rule, block in RULES if rule in selectors for key, value in block.items() if key[:2] == "--"}
    for name, selectors in (("light", (":root",)), ("dark", (":root", ':root[data-theme="dark"]')))
}


def colour(value: str, theme: str) -> Colour:
    """A colour as the style sheets write it: a variable, or six hexadecimal digits."""
    value = value.removesuffix("!important").strip()
    named = re.fullmatch(r"var\((--[\w-]+)\)", value)
    digits = THEMES[theme][named.group(1)] if named else value
    assert re.fullmatch(r"#[0-9a-f]{6}", digits), f"a colour that this test cannot read: {value}"
    red, green, blue = (int(digits[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def luminance(value: Colour) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in value)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def too_weak(pairs: list[tuple[str, str, str]], theme: str, least: float) -> list[str]:
    """Pairs of (where, colour, background) below a ratio."""
    ratios = [(f"{where}: {a} on {b}", contrast(colour(a, theme), colour(b, theme))) for where, a, b in pairs]
    return [f"{what} is {ratio:.2f}" for what, ratio in ratios if ratio < least]


def plain_background(block: dict[str, str]) -> str | None:
    value = block.get("background", "")
    return value if re.match(r"var\(--|#", value) else None


def text_pairs() -> list[tuple[str, str, str]]:
    found = []
    for selector, block in RULES:
        background = plain_background(block)
        if "color" in block and block["color"] not in ("inherit", "currentcolor"):
            found += [(selector, block["color"], each) for each in ([background] if background else SURFACES)]
        elif background and not GRAPHIC.search(selector):
            found.append((selector, "var(--ink)", background))
    return found


def graphic_pairs() -> list[tuple[str, str, str]]:
    found = []
    for selector, block in RULES:
        background = plain_background(block)
        if background and GRAPHIC.search(selector) and not EMPTY.search(selector):
            found.append((selector, background, "var(--surface)"))
        if "input" in selector or "textarea" in selector:
            found += [
                (selector, edge, "var(--surface)") for edge in re.findall(r"var\(--\w+\)", block.get("border", ""))
            ]
        if "stroke" in block:
            found.append((selector, block["stroke"], "var(--raised)"))
        if selector == ":focus-visible":
            found += [(selector, each, on) for each in re.findall(r"var\(--\w+\)", block["outline"]) for on in SURFACES]
    return found


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read(theme: str) -> None:
    pairs = text_pairs()
    assert len(pairs) > 40
    assert too_weak(pairs, theme, TEXT_RATIO) == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_map_can_be_told_from_its_ground(theme: str) -> None:
    pairs = graphic_pairs()
    assert len(pairs) > 15
    assert too_weak(pairs, theme, GRAPHIC_RATIO) == []


def test_nothing_is_made_faint_behind_the_back_of_this_test() -> None:
    """Opacity weakens every colour below it. A button that is off may be faint, and something that blinks is."""
    faint = {selector for selector, block in RULES if float(block.get("opacity", "1")) < 1}
    assert faint == {".primary:disabled", "50%"}


def test_the_formula() -> None:
    """Known values: https://webaim.org/resources/contrastchecker/."""
    assert contrast((0, 0, 0), (1, 1, 1)) == 21
    grey = (0x77 / 255,) * 3
    assert round(contrast(grey, (1, 1, 1)), 2) == 4.48
