"""Words of a text in any script, and their ends.

A word is a run of letters, marks and decimal digits. In scripts without spaces between words (`_WITHOUT_BLANKS`), each
character with its marks counts as a word, as is usual for ROUGE in Chinese. All other characters separate words:
spaces, punctuation, symbols, emoji, and signs such as the half and the raised two.
"""

import unicodedata
from functools import cache

# The beginnings of their letters' Unicode names: Han, kana, bopomofo, Yi, Thai, Lao, Khmer, Burmese and relatives.
_WITHOUT_BLANKS = (
    "CJK ", "IDEOGRAPHIC ", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI ", "TANGUT ", "NUSHU ",
    "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI ", "BALINESE ", "JAVANESE ",
)  # fmt: skip


def words(text: str) -> list[str]:
    """The words of a text, in Unicode's compatibility form (NFKC) and without case.

    So e and an accent equal é, full-width letters and digits equal plain ones, STRASSE equals Straße. Accents count.

    >>> words("Don't! Café №1: 東京タワー 333m")
    ['don', 't', 'café', '1', '東', '京', 'タ', 'ワ', 'ー', '333m']
    """
    # Symbols are removed first: the compatibility form would turn some into letters (a trade mark, a raised two).
    text = "".join(character if kind(character) else " " for character in text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found, before = [], ""
    for character in text:
        now = kind(character)
        if now == "mark":
            now = before  # a mark belongs to the character before it
        if now and now == before and (now == "letter" or kind(character) == "mark"):
            found[-1] += character
        elif now:
            found.append(character)
        before = now
    return found


@cache
def kind(character: str) -> str:
    """A character's role: "letter" (also a digit), "character" (a word by itself), "mark", or "" (not in a word)."""
    category = unicodedata.category(character)
    if category[0] == "L" or category == "Nl":
        return "character" if unicodedata.name(character, "").startswith(_WITHOUT_BLANKS) else "letter"
    if category == "Nd":
        return "letter"
    is_mark = category in ("Mn", "Mc") and not unicodedata.name(character, "").startswith("VARIATION SELECTOR")
    return "mark" if is_mark else ""


def glued(text: str, place: int) -> str:
    """Whether the characters around a place belong together: "digit" for two digits, "letter" for letters, else ""."""
    if not 0 < place < len(text):
        return ""
    before, after = text[place - 1], text[place]
    if before.isdecimal() or after.isdecimal():
        return "digit" if before.isdecimal() and after.isdecimal() else ""
    if kind(after) == "mark":
        return "letter" if kind(before) else ""
    return "letter" if kind(before) in ("letter", "mark") and kind(after) == "letter" else ""
