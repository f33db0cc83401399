"""HTML of a notebook's output, or of its prose, made fit for one page with many others."""

import base64
import binascii
import io

from bs4 import BeautifulSoup, Tag
from PIL import Image, UnidentifiedImageError

from . import page_tables

PNG = "data:image/png;base64,"


def fit(html: str) -> str:
    """The same with tables that the page can show, pictures in a smaller file, and scripts apart from each other."""
    if "<" not in html:
        return html
    soup = BeautifulSoup(html, "html.parser")
    page_tables.tidy(soup)
    for picture in soup.find_all("img", src=True):
        if picture["src"].startswith(PNG):
            picture["src"] = smaller(picture["src"].removeprefix(PNG))
        picture["decoding"] = "async"
    for script in soup.find_all("script"):
        _enclose(script)
    return str(soup)


def smaller(png: str) -> str:
    """A PNG, given as base64, as a data URI of lossless WebP: the same pixels in a third of the bytes."""
    try:
        content, file = base64.b64decode(png), io.BytesIO()
        Image.open(io.BytesIO(content)).save(file, "webp", lossless=True)
    except (binascii.Error, UnidentifiedImageError, OSError):  # the browser will say that it is no picture
        return PNG + "".join(png.split())
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _enclose(script: Tag) -> None:
    """Puts an inline program into a block, so that `const` and `let` of two programs do not collide.

    Functions in a block stay reachable for onclick and the like. Modules have a scope already, and other types (JSON)
    are no programs.
    """
    if "src" not in script.attrs and script.get("type", "text/javascript") == "text/javascript":
        script.string = f"{{\n{script.string or ''}\n}}"
