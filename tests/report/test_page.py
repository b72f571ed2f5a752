"""A page as a reader has it: opened and clicked in a headless Chromium."""

import contextlib
import math

import cv2
import numpy as np
import pytest

from jxfer.report import page
from jxfer.report.page import Chart, Code, Gallery, Image, Line, Link, Number, Table, Text

pytestmark = pytest.mark.slow

HOSTILE = (
    '<script>window.ran = 1</script><img src=x onerror="window.ran = 1">" onmouseover="alert(1)',
    "\x1b[31mred\x1b[0m\nnext line",
    "</table></style></script><b>bold</b>",
    "{{ 7 * 7 }} javascript:alert(1)",
    "a class \udcff that is not UTF-8",
)
PIXELS = cv2.imencode(".png", np.full((8, 8, 3), 128, np.uint8))[1].tobytes()


def sections(names=("full", "lp_ft", "scratch", "probe", "partial")):
    rows = [
        [
            names[0],
            Number("88.1 ± 0.2", 88.1, strong=True),
            Link("log", "log%20of%20it.txt"),
            Code(names[0]),
        ],
        [names[1], Number("9.5", 9.5), "–", "y 10"],
        [names[2], Number("101", 101.0), Link("log", "log%20of%20it.txt"), "y 9"],
        [names[3], "failed", "–", Code("a")],
        [names[4], Number("nan", math.nan), "–", "b"],
    ]
    columns = ["arm", "accuracy", "log", names[0]]
    lines = [
        Line(names[0], [1, 10, 100], [50.0, 60.0, 70.0], [48.0, 58.0, 68.0], [52.0, 62.0, 72.0]),
        Line(names[1], [1, 100], [40.0, 45.5]),
    ]
    dots = [Line(name, [0, 1], [i, i + 1], [i - 1] * 2, [i + 2] * 2) for i, name in
            enumerate(names)]  # fmt: skip
    long = Line("loss", list(range(500)), [math.exp(-i / 100) for i in range(500)])
    return [
        Text("Claim", ["One arm is better.\nSecond line.", *names]),
        Table("Results", columns, rows, names[0]),
        Chart("Curves", "images", "accuracy, %", lines, log_x=True),
        Chart("Dots", "", "accuracy, %", dots, names=["digits, 10 per class", names[0]]),
        Chart("Learning curve", "step", "loss, nats", [long], caption="of the training batch"),
        Table("Wide", [f"column {i}" for i in range(30)], [["0.12345"] * 30] * 2),
        Gallery("Mistakes", [Image(PIXELS, "image/png", name) for name in names]),
        Image(PIXELS, "image/png", names[0]),
    ]


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page; fails on errors in it that are not expected, and on requests to a network."""

    @contextlib.contextmanager
    def open_page(shown, width=1200, expected=0, **options):
        (tmp_path / "log of it.txt").write_text("a log")
        page.write(tmp_path / "index.html", "A title", shown)
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        tab = context.new_page()
        said, requests = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((tmp_path / "index.html").as_uri())
        yield tab
        assert len(said) == expected, said
        assert requests
        assert all(url.startswith(("file:", "data:")) for url in requests)
        context.close()

    return open_page


def first_column(tab, heading):
    return tab.get_by_role("table", name=heading).locator("tbody td:first-child").all_inner_texts()


def test_a_click_on_a_column_sorts_by_it(opened):
    with opened(sections()) as tab:
        table = tab.get_by_role("table", name="Results")
        assert first_column(tab, "Results") == ["full", "lp_ft", "scratch", "probe", "partial"]
        table.get_by_role("button", name="accuracy").click()
        # By value, not by text; what is no number stays at the end.
        assert first_column(tab, "Results") == ["lp_ft", "full", "scratch", "probe", "partial"]
        assert table.locator("th[aria-sort=ascending]").inner_text().startswith("accuracy")
        table.get_by_role("button", name="accuracy").click()
        assert first_column(tab, "Results") == ["scratch", "full", "lp_ft", "partial", "probe"]
        assert table.locator("th[aria-sort]").count() == 1
        table.get_by_role("button", name="arm").click()
        assert first_column(tab, "Results") == ["full", "lp_ft", "partial", "probe", "scratch"]
        assert table.locator("th[aria-sort=ascending]").inner_text().startswith("arm")


def test_a_key_on_a_column_sorts_by_it(opened):
    with opened(sections()) as tab:
        tab.get_by_role("table", name="Results").get_by_role("button", name="accuracy").focus()
        tab.keyboard.press("Enter")
        assert first_column(tab, "Results")[0] == "lp_ft"
        tab.keyboard.press("Space")
        assert first_column(tab, "Results")[0] == "scratch"


def chart_of(tab, heading):
    return tab.locator("section", has=tab.get_by_role("heading", name=heading, exact=True))


def test_a_curve_tells_its_values_under_the_pointer(opened):
    with opened(sections()) as tab:
        chart = chart_of(tab, "Curves")
        tip, svg = chart.get_by_role("status", include_hidden=True), chart.get_by_role("img").last
        assert not tip.is_visible()
        svg.scroll_into_view_if_needed()
        # The middle point of the first curve is in the middle of its box.
        box = chart.locator("svg[data-stops] .line").first.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert tip.inner_text() == "images 10\nfull: 60 (58 to 62)"
        tab.mouse.move(box["x"] + box["width"] - 1, box["y"])
        assert tip.inner_text() == "images 100\nfull: 70 (68 to 72)\nlp_ft: 45.5"
        assert tip.bounding_box()["x"] + tip.bounding_box()["width"] <= 1200
        tab.mouse.move(5, 5)
        assert not tip.is_visible()
        svg.focus()
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowLeft")
        assert tip.inner_text() == "images 1\nfull: 50 (48 to 52)\nlp_ft: 40"
        tab.keyboard.press("ArrowRight")
        assert tip.inner_text().startswith("images 10\n")
        tab.keyboard.press("Escape")
        assert not tip.is_visible()


def test_a_finger_on_a_curve_shows_its_values(opened):
    with opened(sections(), width=360, has_touch=True, is_mobile=True) as tab:
        chart = chart_of(tab, "Curves")
        svg = chart.locator("svg[data-stops]")
        svg.scroll_into_view_if_needed()
        box = svg.bounding_box()
        tab.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 50)
        tip = chart.get_by_role("status")
        assert tip.inner_text() == "images 10\nfull: 60 (58 to 62)"
        assert tip.bounding_box()["x"] >= 0


@pytest.mark.parametrize("names", [("full", "lp_ft", "scratch", "probe", "partial"), HOSTILE])
def test_a_phone_scrolls_tables_inside_their_boxes(opened, names):
    with opened(sections(names), width=360, has_touch=True, is_mobile=True) as tab:
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= 360
        wide = tab.locator(".scroll", has=tab.get_by_role("table", name="Wide"))
        assert wide.evaluate("box => box.scrollWidth > box.clientWidth")


def test_hostile_text_is_shown_and_does_nothing(opened):
    with opened(sections(HOSTILE)) as tab:
        table = tab.get_by_role("table", name="Results")
        shown = table.locator("tbody td:first-child").all_text_contents()
        assert shown == [
            HOSTILE[0],
            "␛[31mred␛[0m\nnext line",
            HOSTILE[2],
            HOSTILE[3],
            "a class \\udcff that is not UTF-8",
        ]
        table.get_by_role("button").last.click()
        tab.locator("svg[data-stops]").first.focus()
        assert HOSTILE[0] in chart_of(tab, "Curves").get_by_role("status").inner_text()
        assert tab.evaluate("window.ran") is None
        assert tab.locator("script").count() == 1
        assert tab.locator("tbody b").count() == 0
        assert tab.locator("img").first.get_attribute("alt") == HOSTILE[0]


def test_an_injected_script_would_not_run(opened):
    with opened(sections(), expected=1) as tab:
        blocked = tab.evaluate(
            """() => new Promise(resolve => {
              document.addEventListener(
                "securitypolicyviolation", event => resolve(event.effectiveDirective));
              const script = document.createElement("script");
              script.textContent = "window.ran = 1";
              document.body.append(script);
            })"""
        )
        assert blocked == "script-src-elem"
        assert tab.evaluate("window.ran") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(opened, scheme):
    def luminance(colour):
        channels = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    with opened(sections(), color_scheme=scheme) as tab:
        style = "(e, name) => getComputedStyle(e)[name]"
        back = luminance(tab.locator("body").evaluate(style, "backgroundColor"))
        assert (back > 0.5) == (scheme == "light")
        for selector in ("h1", "td", "td a", ".caption", "li"):
            text = luminance(tab.locator(selector).first.evaluate(style, "color"))
            contrast = (max(text, back) + 0.05) / (min(text, back) + 0.05)
            assert contrast >= 4.5, selector  # WCAG 2.2, 1.4.3


def test_images_are_there(opened):
    with opened(sections()) as tab:
        images = tab.locator("img")
        assert images.count() == 6
        assert all(image.evaluate("image => image.naturalWidth") == 8 for image in images.all())


def test_references_within_the_page_lead_somewhere(opened):
    """Every name is given once, and every reference has something to refer to."""
    with opened(sections(HOSTILE)) as tab:
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(set(ids)) == len(ids)
        referred = tab.evaluate(
            """[...document.querySelectorAll("[aria-labelledby], [aria-describedby]")].flatMap(e =>
            [e.getAttribute("aria-labelledby"), e.getAttribute("aria-describedby")])"""
        )
        assert {name for name in referred if name} <= set(ids)


def test_addresses_out_of_the_folder_are_refused():
    for address in ("https://example.org/a", "//example.org/a", "javascript:alert(1)"):
        with pytest.raises(ValueError, match="relative"):
            Link("a", address)


def test_a_row_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="row"):
        Table("t", ["a", "b"], [["1"]])


def test_two_writes_give_the_same_bytes(tmp_path):
    for name in ("a.html", "b.html"):
        page.write(tmp_path / name, "A title", sections(HOSTILE))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, one_line):
    with one_line("nothing", "cannot be written"):
        page.write(tmp_path / "nothing" / "index.html", "A title", [])
