"""Every layout of a file gives its rows with their places, once, and lines and tables in little memory."""

import csv
import io
import json
import os
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib.data.own_files import plain_text, row_files
from fedreft_lib.data.own_files.plain_text import LONGEST
from fedreft_lib.data.own_files.row_files import find, look_for, rows
from fedreft_lib.errors import DataError

CELLS = st.text(st.characters(exclude_characters="\0\r\ufeff", exclude_categories=["Cs"]), max_size=4)
ROWS = st.lists(st.dictionaries(CELLS, CELLS | st.integers() | st.lists(CELLS, max_size=1), max_size=2), max_size=20)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rows") / "file"


@contextmanager
def small_limits():
    """Rows of at most 300 characters and pieces of 64 bytes, so that a file is longer than what is in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "_PIECE", 64)
        patch.setattr(plain_text, "LONGEST", 300)
        patch.setattr(row_files, "LONGEST", 300)
        yield


def _read(path: Path, content: str, ending: str) -> list:
    path = path.with_suffix(ending)
    path.write_bytes(content.encode())
    with small_limits():
        return list(rows(path))


@settings(deadline=None)
@given(expected=ROWS, indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
def test_a_list_and_an_object_of_rows_are_what_python_reads(path, expected, indent, ascii_only):
    written = {"indent": indent, "ensure_ascii": ascii_only}
    read = _read(path, f" \n{json.dumps(expected, **written)}\r\n", ".json")
    assert read == [(f"row {number}", row) for number, row in enumerate(expected, start=1)]
    if expected:
        named = {f"é{number}": row for number, row in enumerate(expected)}
        assert _read(path, json.dumps(named, **written), ".json") == [(f"row {n}", row) for n, row in named.items()]


@settings(deadline=None)
@given(expected=ROWS, blank=st.sampled_from(["", "\n", "\r\n \n"]))
def test_json_lines_are_the_rows_of_their_lines(path, expected, blank):
    texts = [json.dumps(row, ensure_ascii=False) for row in expected]
    read = _read(path, "\n".join(blank + text for text in texts), ".jsonl")
    step = blank.count("\n") + 1
    assert read == [(f"line {step * number}", row) for number, row in enumerate(expected, start=1)]


@settings(deadline=None)
@given(
    table=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=6),
    header=st.lists(CELLS, min_size=3, max_size=3, unique=True),
    ending=st.sampled_from([".csv", ".tsv"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_table_is_what_the_csv_module_reads(path, table, header, ending, newline):
    with open(path, "w", encoding="utf-8", newline="") as file:
        delimiter = "," if ending == ".csv" else "\t"
        # All in quotes: this writer leaves a bare line feed where lines end otherwise, which means another line to all.
        writer = csv.writer(file, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL)
        writer.writerows([header, *table])
    with open(path, encoding="utf-8", newline="") as file:
        read = _read(path, file.read(), ending)
    assert [row for _, row in read] == [dict(zip(header, cells, strict=True)) for cells in table]


@pytest.mark.parametrize(
    "ending, content, said",
    [
        (".json", "[1, 2", "line 1: this is not JSON .expecting ']'"),
        (".json", "[1,\n2,\n]", "line 3: this is not JSON .expecting value"),
        (".json", "[1]\n\n[2]", "line 3: this is not JSON .more after its end"),
        (".json", '{"a": {},\n"b": {"c": "d}}', "line 2: this is not JSON .unterminated string"),
        (".json", '{"a": {},\n"a": {}}', "line 2: the name 'a' is twice"),
        (".json", '{"a": {},\n"b" {}}', "line 2: this is not JSON .expecting ':'"),
        (".json", '{"a": {},\n1: {}}', "line 2: this is not JSON .expecting a name in quotation marks"),
        (".json", '{"a": {},', "line 1: this is not JSON .expecting a name in quotation marks"),
        (".jsonl", '{"a": 1}\n{"a": 2', "line 2: this is not JSON .expecting ',' delimiter"),
        (".jsonl", '{"a": 1}\n{"a": 2} {"a": 3}', "line 2: this is not JSON .more after its end"),
        (".jsonl", '{"a": 1}\n{"a": NaN}', "line 2: NaN is no number in JSON"),
        (".csv", 'a,b\n"c,d\ne,f', "line 3: a cell that began in quotation marks has no end here, or it is too long"),
        (".csv", "a,b\nc,d\ne", "line 3: there are 1 cells, expected 2 as in the header"),
        (".csv", "a,b,a\nc,d,e", "line 1: the column 'a' is twice in the header"),
        (".csv", 'a,b\n5" long,c', "line 2: a quotation mark stands in a cell that begins without one"),
        (".csv", 'a,b\n"c" d,e', "line 2: ',' expected after '\"'"),
        (".csv", 'a,b\nc, "d"', "line 2: a quotation mark stands in a cell that begins without one"),
        (".csv", 'a,b\n"c\nd",e\nf,g"', "line 4: a quotation mark stands in a cell that begins without one"),
        (".csv", 'a,b\n"c,d,e\nf,g,h', "line 3: a cell that began in quotation marks has no end here"),
        (".csv", "a,b\nc,d,e", "line 2: there are 3 cells, expected 2 as in the header"),
        (".tsv", 'a\t"b"\nc\td\te', "line 2: there are 3 cells, expected 2"),
        (".tsv", 'a\tb\n"c\td\te\nf\tg', "line 2: there are 3 cells, expected 2"),
        (".tsv", 'a\tb\n"c"\td\ne\tf', "line 2: .*may be a quoted cell or a text with quotation marks"),
        (".tsv", 'a\tb\n"c\td\nx\ne"\tf', "line 4: .*may be a quoted cell or a text with quotation marks"),
        (".json", "[" + '"é", ' * 99 + '\n"' + "x" * 301 + '"]', "line 2: here are more than 1,000,000 characters"),
        (".json", '{"a": {"b": "c"},\n"d": {"e": "' + "x" * 400 + '"}}', "line 2: here are more than 1,000,000"),
        (".jsonl", '{"a": 1}\n{"a": "' + "x" * 300 + '"}', "line 2: here are more than 1,000,000 characters"),
        (".csv", "a\nb\n" + "x" * 301, "line 3: here are more than 1,000,000 characters"),
    ],
)
def test_damage_is_named_by_its_line(path, ending, content, said):
    with pytest.raises(DataError, match=said.replace("1,000,000", "300")) as caught:
        _read(path, content, ending)
    assert f"file{ending}, " in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "ending, content, cells",
    [
        # raw: a line is a row
        (".tsv", '"Hello\tgreeting\nhow are you\tgreeting\nworld"\tnoun\n', ['"Hello', "how are you", 'world"']),
        (".tsv", '"a" b\tx\n"c\ty\n', ['"a" b', '"c']),
        (".tsv", '5" long\tx\n"yes"\ty\n', ['5" long', '"yes"']),
        (".tsv", '"a"\tx\n"b\tx\nc"\ty\n', ['"a"', '"b', 'c"']),
        (".tsv", '""\tx\n"b\tx\n', ['""', '"b']),
        # quoted: as CSV with tabs
        (".tsv", '"a ""b"" c"\tx\nd\ty\n', ['a "b" c', "d"]),
        (".tsv", '"a\tb"\tx\nd\ty\n', ["a\tb", "d"]),
        (".tsv", '"a\nb"\tx\nd\ty\n', ["a\nb", "d"]),
        (".tsv", '"a"\tx\n"b"\ty\n', ["a", "b"]),
        (".csv", '"a ""b"" c",x\nd,y\n', ['a "b" c', "d"]),
        (".csv", '"a, b\nc",x\n"",y\n', ["a, b\nc", ""]),
        # what a cell says stays text, and blanks are part of it
        (".csv", "NA,x\nnull,x\n007,x\n1e5,x\n1_0,x\n a ,x\n", ["NA", "null", "007", "1e5", "1_0", " a "]),
        (".tsv", "None\tx\n\tx\n'b'\tx\n", ["None", "", "'b'"]),
    ],
)
def test_quotation_marks_are_read_as_they_were_meant(path, ending, content, cells):
    header = "text,label\n" if ending == ".csv" else "text\tlabel\n"
    for newline in ("\n", "\r\n"):
        read = _read(path, "\ufeff" + (header + content).replace("\n", newline), ending)
        assert [row["text"] for _, row in read] == cells
        assert {row["label"] for _, row in read} <= {"x", "y", "greeting", "noun"}


@settings(deadline=None)
@given(
    table=st.lists(st.lists(st.text('"\t\na ', max_size=5), min_size=2, max_size=2), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
)
def test_no_table_with_tabs_is_read_as_other_rows(path, table, quoting):
    """What a writer wrote comes back, raw and quoted, or is refused; cells that a raw table cannot hold left out."""
    if quoting == csv.QUOTE_NONE:
        table = [["".join(c for c in cell if c not in "\t\n") or "a" for cell in row] for row in table]
        written = "".join("\t".join(row) + "\n" for row in table)
    else:
        if quoting == csv.QUOTE_MINIMAL:  # a cell with both may be raw rows, line by line, and is then read so
            table = [[cell.replace("\t", "") if "\n" in cell else cell for cell in row] for row in table]
        text = io.StringIO()
        csv.writer(text, delimiter="\t", lineterminator="\n", quoting=quoting).writerows(table)
        written = text.getvalue()
    header = '"text"\t"label"\n' if quoting == csv.QUOTE_ALL else "text\tlabel\n"
    try:
        read = [list(row.values()) for _, row in _read(path, header + written, ".tsv")]
    except DataError:
        assert quoting != csv.QUOTE_ALL and '"' in written
        return
    if quoting == csv.QUOTE_NONE:  # quotation marks around all cells of a column are taken for quotes
        assert len(read) == len(table)
        stripped = [[cell.replace('"', "") for cell in row] for row in table]
        assert [[cell.replace('"', "") for cell in row] for row in read] == stripped
    else:
        assert read == table


def test_damage_in_a_list_on_one_line_is_named_by_its_row(path):
    for content, row in (('[{"a": 1}, {"a": NaN}]', "row 2"), ('{"x": {"a": 1}, "y": {"a": NaN}}', "row y")):
        with pytest.raises(DataError, match=f"file.json, {row}, line 1: NaN is no number in JSON"):
            _read(path, content, ".json")


def test_json_lines_whose_first_column_is_an_object_are_no_object_of_rows(path):
    lines = [{"choices": {"text": ["x"]}, "n": i} for i in range(3)]
    assert [row for _, row in _read(path, "\n".join(map(json.dumps, lines)), ".jsonl")] == lines
    only = [{"choices": {"text": ["x"]}}] * 2
    assert [row for _, row in _read(path, "\n".join(map(json.dumps, only)), ".jsonl")] == only


def test_what_has_the_name_and_is_no_file_is_refused_as_such(tmp_path):
    (tmp_path / "a_train.json").mkdir()
    (tmp_path / "b_train.json").symlink_to("b_train.json")
    (tmp_path / "c_train.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d_train.json")
    for name in "abcd":
        with pytest.raises(DataError, match=f"{name}_train.json: this is no file but a folder, a device or a link"):
            find([name], "train", tmp_path)
    assert look_for(["e"], "train", tmp_path) is None
    with pytest.raises(
        DataError, match="There is no train file of f\\\\ng in .*: it would be called f.*train.tsv"
    ) as e:
        find(["f\ng"], "train", tmp_path)
    assert str(e.value).isprintable()


# ---- size -------------------------------------------------------------------------------------------------------

SIZE = 20 << 20  # bytes


def _large(path: Path) -> Path:
    """A good file of about 20 MB."""
    row = {"text": "a" * 9000, "label": "b"}
    if path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join([mark.join(row), *[mark.join(row.values())] * (SIZE // 9000)]))
    else:
        text = json.dumps(row)
        many = [text] * (SIZE // 9000)
        named = "{" + ",".join(f'"{i}": {one}' for i, one in enumerate(many)) + "}"
        path.write_text({"list": f"[{','.join(many)}]", "object": named, "lines": "\n".join(many)}[path.stem])
    return path


@pytest.mark.parametrize(
    ("name", "most"),
    [("list.json", 3 * SIZE), ("object.json", 3 * SIZE), ("lines.jsonl", 10 * LONGEST), ("table.csv", 10 * LONGEST)],
)
def test_a_large_file_is_read_once_and_lines_and_tables_row_by_row(tmp_path, name, most):
    path = _large(tmp_path / name)
    counter = Path("/proc/self/io")
    before = counter.read_text() if counter.exists() else ""
    tracemalloc.start()
    number = sum(1 for _ in rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == SIZE // 9000
    assert peak < most
    if before:
        read = [int(text.split()[1]) for text in (before, counter.read_text())]  # rchar: bytes that were asked for
        assert read[1] - read[0] < path.stat().st_size + (3 << 20)


@pytest.mark.parametrize("name", ["list.json", "object.json", "list.jsonl"])
def test_a_document_of_more_than_half_a_gibibyte_is_refused_before_it_is_read(tmp_path, name):
    path = _large(tmp_path / name)
    with path.open("r+b") as file:
        file.truncate(600 << 20)
    tracemalloc.start()
    with pytest.raises(
        DataError, match="of 629,145,600 bytes is too large, 536,870,912 are the most; save it as JSON l"
    ):
        list(rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * LONGEST


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("start", ["", '{"text": "', 'text,label\n"'])
def test_a_line_of_20_mb_is_refused_before_it_is_in_memory(tmp_path, ending, start):
    path = tmp_path / f"long{ending}"
    path.write_text(start + "a" * SIZE)
    tracemalloc.start()
    with pytest.raises(DataError, match="line [12]: ") as caught:
        list(rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * LONGEST and len(str(caught.value)) < 1000


@pytest.mark.parametrize("start", ['[{"text": "', '{"a": {"text": "', "[" * 10])
@pytest.mark.parametrize("end", ["", '"}]', '"}}'])
def test_a_row_of_20_mb_in_a_list_or_an_object_is_refused(tmp_path, start, end):
    path = tmp_path / "long.json"
    path.write_text(start + "a" * SIZE + end)
    with pytest.raises(DataError, match="row [1a], line 1: ") as caught:
        list(rows(path))
    assert len(str(caught.value)) < 1000
