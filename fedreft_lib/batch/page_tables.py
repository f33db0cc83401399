"""Tables of pandas as a page shows them: numbers to the right and text to the left, "–" for what is not there.

pandas leaves cells of the header empty, which a screen reader announces as headers without a name; they become plain
cells here, and names of the index move down into them. A table without rows becomes one sentence.
"""

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, Tag

MISSING = {"nan", "none", "nat", "<na>"}
NO_VALUE = {"", "–", "...", "…"}  # says nothing of what its column holds
BETWEEN = re.compile(r"[\s()\[\],/:±×]+|\bto\b")  # "0.3 (0.1 to 0.5)", "1,234", "3 / 8"
NUMBER = re.compile(r"([-+−<>≤≥≈~]*(\d*\.?\d+|\d+\.)(e[-+]?\d+)?|[-+−]?inf)?%?")
SHORT = 28  # characters of a name that is not broken into lines, such as "FedReFT median, λ adaptive"
EMPTY = "No rows: there is nothing to list here."


def tidy(soup: BeautifulSoup) -> None:
    """Changes all tables of a parsed piece of HTML."""
    for style in soup.find_all("style", scoped=True):  # pandas': the page has its own
        style.decompose()
    for table in soup.find_all("table"):
        body = table.find("tbody") or table
        if not body.find(["td", "th"]):
            sentence = soup.new_tag("p")
            sentence.string = EMPTY
            table.replace_with(sentence)
            continue
        for cell in body.find_all("td"):
            if cell.get_text(strip=True).lower() in MISSING:
                cell.string = "–"
        header = table.thead.find_all("tr") if table.thead else []
        _merge_names(header)
        _align(header, body)
        for cell in table.find_all("th"):
            if not cell.get_text(strip=True):
                cell.name = "td"
        del table["border"]
        table.wrap(soup.new_tag("div", attrs={"class": "table"}))


def _merge_names(header: list[Tag]) -> None:
    """Moves the names of the index out of their own row, where the row above has room for them."""
    for row in header:
        del row["style"]
    if len(header) < 2:
        return
    above, names = (row.find_all("th") for row in header[-2:])
    texts = [name.get_text(strip=True) for name in names]
    named = len([text for text in texts if text])
    room = [cell.get_text(strip=True) for cell in above[:named]]
    if named and not any(texts[named:]) and not any(room) and len(above) == len(names):
        for cell, text in zip(above, texts[:named], strict=False):
            cell.string = text
        header[-1].decompose()
        header.pop()


def _align(header: list[Tag], body: Tag) -> None:
    """Marks the cells of columns of numbers with the class "number", and short texts with "short", for the page."""
    rows = body.find_all("tr")
    columns: dict[int, list[Tag]] = {}
    for column, cell in _placed(rows):
        columns.setdefault(column, []).append(cell)
    numbers = {column for column, cells in columns.items() if _are_numbers(cells)}
    for column, cell in [*_placed(rows), *_placed(header)]:
        if column in numbers and int(cell.get("colspan", 1)) == 1:
            cell["class"] = [*cell.get("class", []), "number"]
    for cell in body.find_all(["td", "th"]):
        if len(cell.get_text(strip=True)) <= SHORT and "number" not in cell.get("class", []):
            cell["class"] = [*cell.get("class", []), "short"]


def _are_numbers(cells: list[Tag]) -> bool:
    texts = {cell.get_text(" ", strip=True) for cell in cells} - NO_VALUE
    return bool(texts) and all(NUMBER.fullmatch(part) for text in texts for part in BETWEEN.split(text))


def _placed(rows: list[Tag]) -> Iterator[tuple[int, Tag]]:
    """Each cell with its column, where cells may span rows and columns."""
    until: dict[int, int] = {}  # column: the row in which it is free again
    for i, row in enumerate(rows):
        column = 0
        for cell in row.find_all(["td", "th"], recursive=False):
            while until.get(column, 0) > i:
                column += 1
            yield column, cell
            for _ in range(int(cell.get("colspan", 1))):
                until[column] = i + int(cell.get("rowspan", 1))
                column += 1
