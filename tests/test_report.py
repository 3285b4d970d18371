"""Reports: reading metrics, bands over runs, tables with three faces, SVG, images and the one HTML file."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import statistics
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from ssl_lab.errors import UsageError
from ssl_lab.report import (
    Band,
    Column,
    Report,
    Table,
    band,
    curves,
    image_grid,
    mean_and_spread,
    mean_spread,
    print_tables,
    read_metrics,
    series,
)
from ssl_lab.report.plots import _apart

HOSTILE = "<script>alert(\"1\")</script> & 'x' $\\frac{$ [red] | * \x1b[31m\x00\udcff 漢字"
LINES = {"Supervised": Band(np.arange(5.0), np.linspace(0.1, 0.6, 5), np.full(5, 0.02)),
         "FixMatch": Band(np.arange(5.0), np.linspace(0.1, 0.9, 5), np.full(5, np.nan))}
QUICKSTART = Table(
    "Digits, 10 labels (1 per class), 3 splits",
    [Column("method"), Column("labels", "right"), Column("test accuracy (%)", "right"),
     Column("seconds", "right", ".0f")],
    [["Supervised", 10, "61.9 ± 4.2", 21.25], ["FixMatch", 10, "95.0 ± 2.0", None]],
)


def rows_of(steps: list[int], values: list[float], key: str = "accuracy") -> list[dict[str, float]]:
    return [{"step": float(step), key: value} for step, value in zip(steps, values, strict=True)]


# metrics


def test_read_metrics_keeps_numbers_and_reads_null_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.5, "mask_rate": null, "note": "x"}\n{"step": 20, "loss": 1}\n')
    first, second = read_metrics(path)
    assert set(first) == {"step", "loss", "mask_rate"}
    assert first["loss"] == 1.5
    assert np.isnan(first["mask_rate"])
    assert second == {"step": 20.0, "loss": 1.0}


def test_read_metrics_ignores_a_line_torn_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole, last = b'{"step": 1, "loss": 2.0}\n', '{"step": 2, "n\u00e9e": 1.0}'.encode()
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        assert read_metrics(path) == [{"step": 1.0, "loss": 2.0}]
    path.write_bytes(whole + last)
    assert len(read_metrics(path)) == 2


def test_read_metrics_merges_lines_of_a_step_and_the_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 9}, {"step": 2, "loss": 8}, {"step": 1, "loss": 7, "valid_accuracy": 0.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metrics(path) == [{"step": 1, "loss": 7, "valid_accuracy": 0.5}, {"step": 2, "loss": 8}]


@pytest.mark.parametrize("bad", ['{"step": 1, "lo', '{"loss": 1.0}', "[1, 2]", '{"step": "x"}'])
def test_read_metrics_names_a_bad_line_that_is_not_the_last(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + bad + '\n{"step": 2}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_metrics(path)


def test_read_metrics_of_absent_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_series_skips_absent_and_nan() -> None:
    rows = [{"step": 0.0}, {"step": 1.0, "a": 0.5}, {"step": 2.0, "a": float("nan")}, {"step": 3.0, "a": 0.7}]
    steps, values = series(rows, "a")
    assert steps.tolist() == [1, 3]
    assert values.tolist() == [0.5, 0.7]
    assert [len(part) for part in series(rows, "b")] == [0, 0]


def test_band_is_mean_and_sample_standard_deviation() -> None:
    values = np.random.default_rng(0).uniform(size=(3, 6))
    line = band([rows_of(list(range(6)), list(run)) for run in values], "accuracy")
    assert line.x.tolist() == list(range(6))
    for column in range(6):
        assert line.mean[column] == pytest.approx(statistics.mean(values[:, column]))
        assert line.spread[column] == pytest.approx(statistics.stdev(values[:, column]))


def test_band_interpolates_on_the_common_range_only() -> None:
    runs = [rows_of([0, 10, 20], [0.0, 1.0, 2.0]), rows_of([5, 15, 40], [0.5, 1.5, 4.0]), [{"step": 1.0}]]
    line = band(runs, "accuracy")
    assert line.x.tolist() == [5, 10, 15, 20]
    np.testing.assert_allclose(line.mean, [0.5, 1.0, 1.5, 2.0])  # both runs are the line step / 10
    np.testing.assert_allclose(line.spread, 0, atol=1e-12)


def test_band_of_one_run_has_unknown_spread_and_of_none_is_empty() -> None:
    line = band([rows_of([1, 2], [0.1, 0.2])], "accuracy")
    assert line.mean.tolist() == [0.1, 0.2]
    assert np.isnan(line.spread).all()
    assert [len(part) for part in band([[], []], "accuracy")] == [0, 0, 0]


def test_mean_spread() -> None:
    assert mean_spread([0.742, 0.763, 0.784]) == "76.3 ± 2.1"
    assert mean_spread([0.763]) == "76.3"
    assert mean_spread([12.0, 14.0], percent=False) == "13 ± 1.41"
    assert mean_spread([]) == mean_spread([0.5, float("nan")]) == "–"  # noqa: RUF001
    mean, spread = mean_and_spread([0.1, 0.4])
    assert (mean, spread) == (pytest.approx(0.25), pytest.approx(statistics.stdev([0.1, 0.4])))


# tables


def printed(table: Table, **console: object) -> str:
    file = io.StringIO()
    Console(file=file, **console).print(table)  # type: ignore[arg-type]
    return file.getvalue()


def test_piped_quickstart_table_is_plain_narrow_and_right_aligned() -> None:
    text = printed(QUICKSTART)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    supervised, fixmatch = (line.rstrip() for line in text.splitlines() if " 10  " in line)
    assert supervised.split() == ["Supervised", "10", "61.9", "±", "4.2", "21"]
    assert len(supervised) == len(fixmatch)
    assert supervised.index("10") == fixmatch.index("10")


def test_terminal_table_has_color_codes_only_in_a_terminal() -> None:
    assert "\x1b[1m" in printed(QUICKSTART, force_terminal=True, color_system="standard", _environ={})


@pytest.mark.parametrize("width", [80, 40, 20])
def test_nothing_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    columns = [Column("method")] + [Column(f"accuracy {i}", "right", ".3f") for i in range(5)]
    numbers = [i + 0.125 for i in range(5)]
    text = printed(Table("All", columns, [["a_rather_long_name", *numbers]]), width=width)
    assert max(map(len, text.splitlines())) <= width
    for digit in range(5):
        assert str(digit) in text
    assert text.count("5") >= 5  # the last digit of each number


def test_numbers_stay_whole_when_headings_can_wrap_instead() -> None:
    columns = [Column("method")] + [Column("accuracy (%)", "right", ".3f") for _ in range(6)]
    text = printed(Table("All", columns, [["a_rather_long_name", *([10.125] * 6)]]), width=80)
    assert text.count("10.125") == 6


NAMES = ["the run", "taylor(ratio=0.5, rounds=2)", "rigl(density=0.5, every=2) + sam", "模型經過裁剪與量化"]
ELEVEN = Table("A run, and what was made of it",
               [Column(""), *(Column(f"figure {i}", "right", ",d") for i in range(10))],
               [[name, *range(1_000_000, 1_000_010)] for name in NAMES])


@pytest.mark.parametrize("width", [200, 80, 60])
def test_a_wide_table_is_cut_into_parts_that_name_their_rows(width: int) -> None:
    lines = printed(ELEVEN, width=width).splitlines()
    assert max(map(cell_len, lines)) <= width
    parts = [sum(line.strip().startswith(name) for line in lines) for name in NAMES]
    assert len({*parts}) == 1  # no name is broken
    assert (parts[0] == 1) == (width == 200)
    for name in NAMES:
        figures = " ".join(line.split(name)[1] for line in lines if name in line).split()
        assert figures == [f"{i:,d}" for i in range(1_000_000, 1_000_010)]
    ends = [{cell_len(line.rstrip()) for line in lines if name in line} for name in NAMES]
    assert ends[0] == ends[1] == ends[2] == ends[3]  # wide characters too


def test_sentences_wrap_at_spaces_beside_whole_names() -> None:
    reason = "RuntimeError: out of memory, of which there is less than it takes; make steps smaller, or go elsewhere"
    table = Table("runs", [Column("run"), Column("state"), Column("done", "right", ".0%"), Column("reason")],
                  [["a/long_path/seed=0", "failed", 0.5, reason], ["漢" * 50, "done", 1.0, "/a" * 60]])
    lines = printed(table, width=80).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert sum("a/long_path/seed=0" in line for line in lines) == 2
    words = " ".join(line.replace("a/long_path/seed=0", "") for line in lines).split()
    assert {*reason.split()} <= {*words}
    assert "".join(lines).count("漢") == 100  # a name too long for any line is broken, and whole


def test_a_pipe_gets_a_line_for_each_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = Table("a " * 200, [Column("run"), *(Column(f"figure {i}", "right") for i in range(60)), Column("reason")],
                 [["漢字" * 40, *range(60), "word " * 80]])
    print_tables(long)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == "a " * 199 + "a"
    assert lines[-1].split() == ["漢字" * 40, *map(str, range(60)), *["word"] * 80]
    monkeypatch.setenv("COLUMNS", "70")
    print_tables(long)
    assert max(map(cell_len, capsys.readouterr().out.splitlines())) <= 70


def test_terminal_without_unicode_still_gets_the_table() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file).print(Table(HOSTILE, [Column("a ±")], [[HOSTILE]]))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "a ?" in text
    assert "[red]" in text
    assert "\x1b" not in text


def test_markdown_is_a_valid_table() -> None:
    table = Table("T", [Column("na|me"), Column("x", "right", ".1%")], [["a|b\nc", 0.125], ["<b>*`", None]])
    lines = table.markdown().splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in cells} == {2}
    assert len({len(line) for line in lines}) == 1
    assert re.fullmatch(r" -{3,} ", cells[1][0])
    assert re.fullmatch(r" -{2,}: ", cells[1][1])
    assert [cell.strip() for row in cells[2:] for cell in row] == [
        r"a\|b c", "12.5%", r"\<b\>\*\`", "–"]  # noqa: RUF001


def test_html_table_is_well_formed_aligned_and_escaped() -> None:
    root = ElementTree.fromstring(Table(HOSTILE, QUICKSTART.columns, [[HOSTILE, 1, 2, 3]]).html())
    assert root.findtext("caption/span", "").startswith('<script>alert("1")')
    assert [cell.get("class") for cell in root.iterfind("tbody/tr/*")] == [None, "right", "right", "right"]
    assert [cell.get("scope") for cell in root.iterfind("thead/tr/th")] == ["col"] * 4
    assert not root.findall(".//script")


def test_table_refuses_a_ragged_row() -> None:
    with pytest.raises(UsageError, match="2 cells, expected 1"):
        Table("T", [Column("a")], [["x", 1]])


# curves


def test_svg_is_well_formed_deterministic_and_keeps_text() -> None:
    svg = curves(LINES, "Test accuracy", percent=True)
    assert svg == curves(LINES, "Test accuracy", percent=True)
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Supervised", "FixMatch", "Test accuracy (%)", "training step"} <= set(texts)
    assert root.get("aria-label") == "Test accuracy (%) against training step: Supervised, FixMatch"
    assert "<style" not in svg
    assert "font-family" not in svg


def test_svg_ids_are_unique_in_a_page_and_references_resolve() -> None:
    page = curves(LINES, "a") + curves(LINES, "b") + curves({"other": LINES["FixMatch"]}, "a")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def ticked(svg: str) -> dict[str, float]:
    """The labels of the x axis -> where they stand."""
    root = ElementTree.fromstring(svg)
    texts = [text for text in root.iter("{http://www.w3.org/2000/svg}text") if re.fullmatch(r"[\d.]+", text.text or "")]
    bottom = max(float(text.attrib["y"]) for text in texts)
    return {text.text or "": float(text.attrib["x"]) for text in texts if float(text.attrib["y"]) == bottom}


def test_counts_are_ticked_as_such_on_a_log_axis() -> None:
    counts = np.array([10.0, 40.0, 250.0, 4000.0])
    line = Band(counts, np.array([0.1, 0.5, 0.6, 0.9]), np.full(4, 0.05))
    places = ticked(curves({"a": line, "b": Band(counts[1:3], line.mean[1:3], line.spread[1:3])}, "y", log=True))
    assert sorted(places, key=places.__getitem__) == ["10", "40", "250", "4000"]
    steps = np.diff(np.log10(counts)), np.diff([places[name] for name in ("10", "40", "250", "4000")])
    np.testing.assert_allclose(steps[1] / steps[1].sum(), steps[0] / steps[0].sum(), atol=0.01)
    assert curves({"a": line}, "y", log=True) == curves({"a": line}, "y", log=True)
    assert "nothing was logged" in curves({}, "y", log=True)


def test_ticks_of_a_log_axis_do_not_touch() -> None:
    counts = np.arange(1.0, 200.0)
    places = ticked(curves({"a": Band(counts, counts / 200, np.full(len(counts), np.nan))}, "y", log=True))
    order = sorted(places.items(), key=lambda item: item[1])
    assert order[-1][0] == "199"
    assert len(order) > 8
    for (left, start), (right, stop) in pairwise(order):
        assert stop - start > 3.5 * (len(left) + len(right))


def test_color_comes_from_the_place_and_an_empty_band_keeps_it() -> None:
    empty = Band(np.empty(0), np.empty(0), np.empty(0))
    first, both = curves({"a": LINES["FixMatch"]}, "y"), curves({"none": empty, "a": LINES["FixMatch"]}, "y")
    assert "#0072b2" in first
    assert "#0072b2" not in both
    assert "#d55e00" in both
    assert ">none<" not in both
    assert "nothing was logged" in curves({"none": empty}, "y", percent=True)


def test_band_is_shaded_where_the_spread_is_known() -> None:
    shade = "fill: #0072b2; fill-opacity: 0.16"
    assert shade in curves({"a": LINES["Supervised"]}, "y")
    assert shade not in curves({"a": LINES["FixMatch"]}, "y")


def test_a_single_point_is_drawn() -> None:
    point = Band(np.array([10.0]), np.array([0.5]), np.array([np.nan]))
    assert "<use" in curves({"a": point}, "y", "labels", percent=True)


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    lines = {f"method {i}": LINES["Supervised"] for i in range(25)}
    root = ElementTree.fromstring(curves(lines, "y"))
    texts = [text for text in root.iter("{http://www.w3.org/2000/svg}text") if "method" in (text.text or "")]
    heights = sorted(float(text.attrib["y"]) for text in texts)
    assert len(heights) == 25
    assert min(np.diff(heights)) > 12
    assert 0 < heights[0] < heights[-1] < float(root.attrib["viewBox"].split()[3])


@pytest.mark.parametrize(("ends", "expected"), [
    ([50.0, 100.0], [50.0, 100.0]),
    ([100.0, 50.0, 52.0], [100.0, 43.0, 59.0]),  # 16 apart, around their mean of 51
    ([0.0, 0.0], [0.0, 16.0]),
    ([200.0, 200.0, 10.0], [184.0, 200.0, 10.0]),
    ([], []),
])
def test_labels_move_as_little_as_they_must(ends: list[float], expected: list[float]) -> None:
    assert _apart(np.array(ends), low=0, high=200).tolist() == pytest.approx(expected)


def test_long_lines_are_thinned_by_averaging() -> None:
    steps = np.arange(100_000.0)
    svg = curves({"a": Band(steps, steps % 2, np.full(len(steps), np.nan))}, "y")
    assert len(svg) < 20_000


def test_hostile_labels_stay_text() -> None:
    root = ElementTree.fromstring(curves({HOSTILE: LINES["FixMatch"]}, HOSTILE, HOSTILE))
    assert not [element for element in root.iter() if "script" in element.tag]
    assert any((text.text or "").startswith("<script>alert") for text in root.iter())


# images


def decoded(markup: str) -> list[np.ndarray]:
    data = re.findall(r'src="data:image/png;base64,([^"]+)"', markup)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in data]


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_holds_the_exact_pixels(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 8, 6), dtype=np.uint8)
    for image, shown in zip(images, decoded(image_grid(images, columns=2, scale=5)), strict=True):
        np.testing.assert_array_equal(shown.reshape(8, 6, channels), image.transpose(1, 2, 0))
    assert 'width="30" height="40"' in image_grid(images, scale=5)
    assert 'width="78"' in image_grid(images)


def test_image_grid_rows_captions_and_escaping() -> None:
    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    grid = image_grid(images, captions=[HOSTILE, "", "b", "c"], columns=2, rows=["weak", "<b>"])
    root = ElementTree.fromstring(re.sub(r"(<img[^>]*)>", r"\1/>", grid))
    assert [child.tag for child in root] == ["div", "figure", "figure", "div", "figure", "figure"]
    assert [child.text for child in root.iterfind("div")] == ["weak", "<b>"]
    captions = [caption.text or "" for caption in root.iter("figcaption")]
    assert captions[0].startswith("<script>")
    assert captions[1:] == ["b", "c"]


@pytest.mark.parametrize(("arguments", "match"), [
    ({"images": np.zeros((1, 1, 2, 2))}, "float64"),
    ({"images": np.zeros((2, 2), np.uint8)}, "uint8 \\[2, 2\\]"),
    ({"images": np.zeros((1, 4, 2, 2), np.uint8)}, "1 or 3"),
    ({"images": np.zeros((2, 1, 2, 2), np.uint8), "captions": ["a"]}, "1 captions for 2 images"),
    ({"images": np.zeros((2, 1, 2, 2), np.uint8), "rows": ["a"]}, "row headings"),
    ({"images": np.zeros((3, 1, 2, 2), np.uint8), "rows": ["a"], "columns": 2}, "row headings"),
])
def test_image_grid_refuses(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        image_grid(**arguments)  # type: ignore[arg-type]


# the page


def page() -> Report:
    report = Report(HOSTILE, HOSTILE, footer=HOSTILE)
    report.section(HOSTILE)
    report.text(HOSTILE)
    report.table(Table(HOSTILE, [Column(HOSTILE)], [[HOSTILE]]))
    report.figure(curves({HOSTILE: LINES["Supervised"]}, HOSTILE), HOSTILE)
    report.figure(curves(LINES, "b"), "second")
    report.images(image_grid(np.zeros((1, 3, 4, 4), np.uint8), [HOSTILE]), HOSTILE)
    return report


class Page(HTMLParser):
    """Collects tags and attributes, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_escaped() -> None:
    text = page().html()
    parsed = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & set(parsed.tags)
    assert "http" not in re.sub(r'xmlns="http://www\.w3\.org/2000/svg"|http-equiv', "", text)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert "@import" not in text
    sources = [value for name, value in parsed.attributes if name in {"src", "href"}]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert any("default-src 'none'" in value for name, value in parsed.attributes if name == "content")
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_plots_that_follow_each_other_stand_side_by_side() -> None:
    text = page().html()
    assert text.count('<div class="figures">') == 1
    assert text.count("<svg") == 2


def test_page_has_a_footer_only_if_given() -> None:
    assert "<footer>ssl_lab 1</footer>" in Report("t", footer="ssl_lab 1").html()
    assert "footer>" not in Report("t").html()


def test_written_bytes_are_deterministic(tmp_path: Path) -> None:
    page().write(tmp_path / "new" / "a.html")
    page().write(tmp_path / "b.html")
    assert (tmp_path / "new" / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert os.listdir(tmp_path / "new") == ["a.html"]


@pytest.mark.parametrize("broken", ["html", "fsync"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         broken: str) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Report, "html") if broken == "html" else (os, "fsync")), fail)
    with pytest.raises((OSError, UsageError), match="No space left"):
        page().write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_unwritable_path_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        page().write(tmp_path / "file" / "report.html")


def test_pages_of_runs_are_linked_relative_to_the_page_and_only_those_that_are_there(tmp_path: Path) -> None:
    for name in ("one & <b>", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "one & <b>" / "report.html").write_text("")
    page = Report("links")
    page.runs({name: tmp_path / "runs" / name for name in ("one & <b>", "other")}, tmp_path / "page")
    assert '<a href="../runs/one%20%26%20%3Cb%3E/report.html">one &amp; &lt;b&gt;</a>' in page.html()
    assert "other" not in page.html()
    none = Report("links")
    none.runs({"other": tmp_path / "runs" / "other"}, tmp_path)
    assert "<p>" not in none.html()


def test_lists_and_commands_are_escaped_and_folded_tables_open_without_scripts() -> None:
    page = Report("blocks")
    page.list([])
    assert "<ul>" not in page.html()
    page.list([HOSTILE])
    page.command("ssl-lab label 'my <data>'")
    page.folded("All <of> it", QUICKSTART)
    text = page.html()
    assert "<script" not in text
    assert "<pre><code>ssl-lab label &#x27;my &lt;data&gt;&#x27;</code></pre>" in text
    assert "<summary>All &lt;of&gt; it</summary>" in text
