"""The explorer's page alone in a browser, without a kernel: what is done on it holds, whatever comes back late."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from explorer_page import Seen, open_page

from carblib.explore.explorer import Explorer
from carblib.explore.panel import ExplorerPanel
from carblib.explore.viewer import Viewer

pytestmark = pytest.mark.browser

# The part of Jupyter's widget model that a page uses; `told` are the states that were sent to the kernel.
PAGE = """async ([code, style, state]) => {
  const binary = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt()).buffer);
  const revived = (key, value) => value?.base64 === undefined ? value : binary(value.base64);
  const values = new Map(Object.entries(JSON.parse(state, revived))), calls = new Map();
  window.told = [];
  window.model = {
    get: (name) => values.get(name),
    set: (name, value) => { values.set(name, value); calls.get(`change:${name}`)?.(); },
    on: (name, call) => calls.set(name, call), off: () => calls.clear(), send: () => {},
    save_changes: () => told.push(structuredClone(values.get("look"))),
  };
  const [begin, end] = [setTimeout, clearTimeout];
  window.timers = new Set();
  window.setTimeout = (call, wait) => {
    const timer = begin(() => { timers.delete(timer); call(); }, wait);
    timers.add(timer);
    return timer;
  };
  window.clearTimeout = (timer) => { timers.delete(timer); end(timer); };
  window.drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
  const module = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  window.leave = module.default.render({ model, el: document.body.appendChild(document.createElement("div")) });
}"""


@pytest.fixture(scope="module")
def seen(explorer: Explorer) -> Iterator[Seen]:
    viewer = ExplorerPanel(explorer).viewer
    state = {name: getattr(viewer, name) for name in Viewer.class_own_traits(sync=True)}
    state = json.dumps(state, default=lambda data: {"base64": base64.b64encode(data).decode()})
    with open_page(1500, 1400) as page:
        page.goto("data:text/html,<title>viewer</title><body></body>")
        page.evaluate(PAGE, [str(viewer._esm), str(viewer._css), state])
        seen = Seen(page)
        seen.whole()
        seen.viewer.focus()
        yield seen


def test_an_echo_that_comes_late_undoes_no_key(seen: Seen) -> None:
    """The kernel repeats every state it is told; a busy one repeats it when the next key has been pressed."""
    page = seen.page
    mode = "viewer.querySelector('[data-mode][aria-pressed=true]').dataset.mode === arg"
    page.keyboard.press("f")
    page.wait_for_function("told.length === 1")
    page.evaluate(  # at once: in a moment this one is told as well, and what the kernel says then is news
        """() => { const key = new KeyboardEvent("keydown", { key: "f", bubbles: true });
        document.querySelector(".carblib-viewer").dispatchEvent(key); model.set("look", structuredClone(told[0])); }"""
    )
    seen.until(mode, "errors")
    page.wait_for_function("told.length === 2")
    assert page.evaluate("told.map((look) => look.mode)") == ["outline", "errors"]
    assert page.evaluate("model.get('look').mode") == "errors"
    seen.until(mode, "errors")
    page.evaluate("model.set('look', structuredClone(told[0]))")  # a view that was saved, say
    seen.until(mode, "outline")


def test_keys_act_after_a_click_on_what_is_made_anew(seen: Seen) -> None:
    page, viewer = seen.page, seen.viewer
    tag = "odd ×: remove this tag"
    page.evaluate("model.set('place', { ...model.get('place'), tags: ['odd'] })")
    legend = viewer.locator(".legend")
    for button, name in [
        (legend.get_by_label("show road", exact=True), "show road"),
        (legend.get_by_role("button", name="road", exact=True), "road"),
        (viewer.locator(".panels button").first, "1 image"),
        (viewer.get_by_role("button", name="list as a table"), "list as a table"),
        (viewer.get_by_label(tag), tag),
    ]:
        for _ in range(2):  # on, and off again
            button.click()
            page.evaluate("drawn")
            assert page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent") == name
    page.evaluate("model.set('place', { ...model.get('place'), tags: [] })")  # which the kernel answers
    assert page.evaluate("document.activeElement.tagName") == "SECTION"
    viewer.get_by_label("only image").focus()
    page.keyboard.press("1")
    page.keyboard.press("1")
    viewer.get_by_label("only image").wait_for()
    before = page.evaluate("model.get('look').opacity")
    page.keyboard.press("O")
    assert page.evaluate("model.get('look').opacity") == pytest.approx(before + 0.05)


def middle(seen: Seen, name: str) -> tuple[float, float]:
    place = seen.viewer.get_by_label(name, exact=True).bounding_box()
    return place["x"] + place["width"] / 2, place["y"] + place["height"] / 2


def tell(seen: Seen, name: str) -> None:
    """Let the kernel send a trait again, which makes what shows it anew."""
    seen.page.evaluate("([name]) => model.set(name, { ...model.get(name), note: 'news' })", [name])
    seen.page.wait_for_timeout(100)  # what is decoded is drawn


def test_a_press_acts_on_what_was_pressed_though_news_come_before_it_is_let_go(seen: Seen) -> None:
    """A click that begins on one node and ends on another is nobody's."""
    page = seen.page
    shown = "viewer.querySelector('[aria-label=\"show road\"]').checked"
    for name, trait, done in [
        ("list as a table", "gallery", "viewer.querySelector('table.list')"),
        ("list as a table", "gallery", "viewer.querySelector('.thumbs')"),
        ("show road", "layers", f"!{shown}"),
        ("show road", "layers", shown),
    ]:
        page.mouse.move(*middle(seen, name))
        page.mouse.down()
        tell(seen, trait)
        page.mouse.up()
        seen.until(done)
        page.evaluate("drawn")
        assert "news" in seen.look(".gallery"), "what came is shown once the button is let go"
    seen.viewer.get_by_label("list as a table").focus()
    page.keyboard.down(" ")
    tell(seen, "gallery")
    page.keyboard.up(" ")
    seen.until("viewer.querySelector('table.list')")
    page.mouse.move(*middle(seen, "list as a table"))
    page.mouse.down(button="right")  # of which, with the menu of the browser, no release may come
    page.evaluate("model.set('gallery', { ...model.get('gallery'), note: 'later' })")
    assert "later" in seen.look(".gallery")
    page.mouse.up(button="right")
    page.keyboard.press("Escape")
    seen.viewer.get_by_label("list as a table").click()
    seen.until("viewer.querySelector('.thumbs')")


def test_a_second_press_is_not_let_go_by_the_first(seen: Seen) -> None:
    """On a busy page the second press comes before what waits for the end of the first."""
    press = """async (name) => {
      const node = document.querySelector(`.carblib-viewer [aria-label="${name}"]`);
      const act = (kind) => node.dispatchEvent(new PointerEvent(kind, { bubbles: true }));
      const later = () => new Promise((done) => setTimeout(done, 50));
      for (const kind of ["pointerdown", "pointerup", "pointerdown"]) act(kind);
      await later();
      model.set("gallery", { ...model.get("gallery"), note: "third" });
      const kept = node.isConnected;
      act("pointerup");
      await later();
      return [kept, node.isConnected];
    }"""
    found = seen.page.evaluate(press, "list as a table")
    assert found == [True, False], "kept while it is pressed, made anew after"
    assert "third" in seen.look(".gallery")


def test_an_empty_list_leaves_nothing_of_the_last_image(seen: Seen) -> None:
    page = seen.page
    seen.point("truth", 0.5, 0.5)
    page.evaluate("window.kept = [model.get('picture'), model.get('event')]")
    page.evaluate("model.set('local', true)")
    page.evaluate("model.set('picture', {})")
    seen.until("viewer.dataset.drawn.endsWith('none')")
    assert seen.look(".legend") == "class" and seen.look(".readout") == ""
    page.keyboard.press("Alt+ArrowLeft")
    assert page.evaluate("model.get('event') === kept[1]"), "there is no box to be moved"
    page.evaluate("model.set('local', false)")
    page.evaluate("model.set('picture', kept[0])")
    seen.whole()
    assert "mIoU of this image" in seen.look(".legend")


def test_a_page_that_was_left_does_nothing_more(seen: Seen) -> None:
    seen.viewer.focus()
    seen.key("o")
    waiting = seen.page.evaluate("() => { const before = timers.size; leave(); return [before, timers.size]; }")
    assert waiting[0] and waiting[1] == 0, "a state to be saved, a still to be taken"
