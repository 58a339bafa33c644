/* The views that show what is new: each has an id, and a function that puts a value on the page. What the page was told goes past
 * Gradio, whose own events walk through every component of the page at every answer, 0.1 s of a processor each. (see pulse.js) */
"use strict";

const qLive = (() => {
  const views = new Map();
  const told = new Map(); // of each view all that the page was told, also before the view's tab was opened for the first time
  let ask = null;
  let wanted = ""; // the run that was asked for and is not shown yet
  let fields = null; // values of the fields that views depend on; null while they are as the page was built

  function show(id, news) {
    const one = views.get(id);
    if (!one) return;
    // Not by the document: Gradio may not have placed the tab yet.
    if ("visible" in news) one.element.closest(`#${id}`)?.toggleAttribute("data-told", news.visible);
    if ("value" in news) one.put(news.value);
  }

  function busy() {
    const view = document.getElementById("train-view");
    if (wanted && view?.querySelector("[data-run]")?.dataset.run === wanted) wanted = "";
    view?.setAttribute("aria-busy", String(wanted !== ""));
  }

  return {
    /* From now on `put` is given the values of view `id`, whose component holds `element`. */
    mount(id, element, put) {
      views.set(id, { element, put });
      if (told.has(id)) show(id, told.get(id));
    },
    /* The same for a view that is its value's HTML, inside `element`; `then` is called when it stands. */
    html(id, element, then) {
      this.mount(id, element, (value) => qPut(element, value, then));
    },
    tell(all) {
      for (const [id, news] of Object.entries(all)) {
        told.set(id, { ...told.get(id), ...news });
        // One view that cannot be shown must not keep the others from it.
        try { show(id, news); } catch (error) { console.error(`The view ${id} cannot be shown:`, error); }
      }
      busy();
    },
    /* Something was done: what the app drew before is old. */
    now(inputs) {
      fields = inputs;
      if (ask) ask(true);
    },
    /* A run was asked for. Reading a long one takes seconds, in which the Train tab still shows the one before (runs.css). */
    opening(run) {
      wanted = run;
      busy();
      setTimeout(() => { if (wanted === run) { wanted = ""; busy(); } }, 15_000);
    },
    begin(asks) {
      ask = asks;
    },
    inputs: () => fields,
  };
})();

/* Make what stands in `place` equal to `html`, keeping every node that can stay: with it stay focus, scrolling and what is selected. */
function qPut(place, html, then) {
  const wanted = document.createElement("template");
  wanted.innerHTML = html;
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const what = focused && qMeaning(focused);
  qMatch(place, wanted.content);
  if (then) then();
  if (!focused || (focused.isConnected && qMeaning(focused) === what)) return;
  // The keyboard follows what it was at, and where that is gone goes on from here: not from the top of the page, nor on a button that
  // has come to mean something else, which Enter might press unseen.
  const same = what && [...place.querySelectorAll(focused.localName)].find((node) => qMeaning(node) === what);
  if (!same) place.tabIndex = -1;
  (same || place).focus({ preventScroll: true });
}

/* What a button, a box or a fold of a view stands for; empty for anything else. */
function qMeaning(node) {
  const { act, change, go, id } = node.dataset;
  return [act || change || go || node.parentElement?.dataset.key, id].filter(Boolean).join(" ");
}

function qMatch(old, wanted) {
  const have = [...old.childNodes];
  const want = [...wanted.childNodes];
  for (let place = want.length; place < have.length; place++) have[place].remove();
  want.forEach((next, place) => {
    const node = have[place];
    if (!node) old.append(next);
    else if (node.isEqualNode(next)) return;
    else if (node.nodeName !== next.nodeName) node.replaceWith(next);
    else if (node.nodeType !== Node.ELEMENT_NODE) node.data = next.data;
    else {
      qMatchAttributes(node, next);
      qMatch(node, next);
    }
  });
}

function qMatchAttributes(node, next) {
  const isUsers = (name) => name === "open" && node.dataset.key !== undefined; // what is folded is the user's
  for (const { name } of [...node.attributes]) {
    if (next.hasAttribute(name) || isUsers(name)) continue;
    node.removeAttribute(name);
    if (name === "checked" || name === "selected") node[name] = false;
  }
  for (const { name, value } of [...next.attributes]) {
    if (node.getAttribute(name) === value || isUsers(name)) continue;
    node.setAttribute(name, value);
    // A field that was touched no longer listens to its attributes.
    if (name === "value" && "value" in node) node.value = value;
    if (name === "checked" || name === "selected") node[name] = true;
  }
}
