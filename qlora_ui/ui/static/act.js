/* Buttons inside our HTML: a click on [data-act] becomes the event "act" of the component, with the button's data.
 *
 * data-confirm   a sentence: asks first, in a dialog whose Yes is labelled data-yes
 * data-ask       a question: asks for a line of text (data-value is the old one), sent as `text`; data-long for several lines
 * data-show      the id of what is brought into view by it, and takes the keyboard
 * data-echo      what the button says from the click until the page is drawn anew
 * <details data-key> keep their state, fields keep what was typed, when the HTML is drawn anew.
 */
"use strict";

function mountActions(id, element, trigger, watch) {
  listenToActions(element, trigger, (again) => {
    watch("value", again);
    qLive.html(id, element, again);
  });
}

function listenToActions(element, trigger, whenDrawn) {
  const folds = new Map();

  element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (!button || !element.contains(button) || button.ariaDisabled === "true") return;
    event.preventDefault();
    const data = { ...button.dataset };
    if (data.confirm || data.ask) dialog(button, data, (text) => send(button, text === undefined ? data : { ...data, text }));
    else send(button, data);
  });

  element.addEventListener("change", (event) => {
    const field = event.target.closest("[data-change]");
    if (!field) return;
    const on = field.type === "checkbox" ? field.checked : null;
    // Two choices made faster than the page is drawn anew must both count: `all` is what all fields of that kind hold now.
    const all = {};
    for (const one of element.querySelectorAll("[data-change]")) if (one.dataset.change === field.dataset.change && one.dataset.id) all[one.dataset.id] = one.value;
    send(null, { ...field.dataset, act: field.dataset.change, text: field.value, on, all: JSON.stringify(all) });
  });

  element.addEventListener("toggle", (event) => {
    const key = event.target.dataset && event.target.dataset.key;
    if (key) folds.set(key, event.target.open);
    // A menu near the lower edge opens below it.
    if (event.target.open && event.target.matches("[data-menu]")) event.target.lastElementChild.scrollIntoView({ block: "nearest" });
  }, true);

  document.addEventListener("click", (event) => {
    for (const menu of element.querySelectorAll("details[data-menu][open]")) {
      if (menu.contains(event.target) && !event.target.closest("[data-act]")) continue;
      if (menu.contains(document.activeElement)) headOf(menu).focus();
      menu.open = false;
    }
  });
  element.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest("details[data-menu][open]");
    if (menu) { menu.open = false; headOf(menu).focus(); }
  });

  // Of what Gradio draws anew every node is replaced, also the one that was pressed: the keyboard goes on from there (see qPut).
  let held = null;
  element.addEventListener("focusin", ({ target }) => { held = { node: target, what: meaning(target) }; });
  element.addEventListener("focusout", ({ target }) => setTimeout(() => { if (held?.node === target && target.isConnected && document.activeElement !== target) held = null; }));

  function meaning(node) {
    const row = node.localName === "button" ? node.closest("li, tr") : null; // numbers of findings move up
    return [node.localName, qMeaning(node), row?.textContent].join(" ");
  }

  function holdOn() {
    if (!held || held.node.isConnected || document.activeElement !== document.body) return;
    const same = [...element.querySelectorAll(held.node.localName)].find((node) => meaning(node) === held.what);
    if (!same) element.tabIndex = -1;
    (same || element).focus({ preventScroll: true });
  }

  whenDrawn(() => {
    holdOn();
    for (const fold of element.querySelectorAll("details[data-key]")) if (folds.has(fold.dataset.key)) fold.open = folds.get(fold.dataset.key);
    for (const button of element.querySelectorAll("[data-sent]")) settle(button);
  });

  function send(button, data) {
    if (button && data.echo) {
      button.dataset.sent = button.textContent;
      button.textContent = data.echo;
      button.ariaDisabled = "true"; // `disabled` would take the focus away from a keyboard, to the top of the page
      setTimeout(() => settle(button), 4000);
    }
    if (data.act === "open") qLive.opening(data.id);
    if (data.show) qlora.go(data.tab, data.show);
    trigger("act", data);
  }

  function headOf(menu) {
    return menu.querySelector("summary");
  }

  function settle(button) {
    if (button.dataset.sent === undefined) return;
    if (button.textContent === button.dataset.echo) button.textContent = button.dataset.sent;
    delete button.dataset.sent;
    button.ariaDisabled = null;
  }

  function dialog(button, data, yes) {
    const box = document.createElement("dialog");
    box.className = "q-dialog";
    const form = box.appendChild(document.createElement("form"));
    form.method = "dialog";
    const words = form.appendChild(document.createElement("p"));
    words.textContent = data.confirm || data.ask;
    words.id = `q-dialog-${Date.now()}`;
    box.setAttribute("aria-labelledby", words.id);
    let field = null;
    if (data.ask) {
      field = form.appendChild(document.createElement(data.long !== undefined ? "textarea" : "input"));
      field.value = data.value || "";
      field.dir = "auto"; // the way of the script that is written
      field.setAttribute("aria-labelledby", words.id);
      if (data.long === undefined) field.maxLength = 4000; // a question or an answer is as long as it is
    }
    const row = form.appendChild(document.createElement("div"));
    row.className = "q-dialog-row";
    const no = row.appendChild(document.createElement("button"));
    no.type = "button"; no.className = "q-button"; no.textContent = data.no || "Cancel";
    const ok = row.appendChild(document.createElement("button"));
    ok.type = "submit"; ok.value = "yes";
    ok.className = `q-button ${data.danger !== undefined ? "q-button-danger" : "q-button-primary"}`;
    ok.textContent = data.yes || "OK";
    no.addEventListener("click", () => box.close());
    box.addEventListener("close", () => {
      if (box.returnValue === "yes") yes(field ? field.value : undefined);
      box.remove();
      const menu = button.closest("details[data-menu]");
      const back = menu ? headOf(menu) : button; // a menu closed when its button was pressed
      if (back.isConnected) back.focus();
    });
    document.body.appendChild(box);
    box.showModal();
    if (field) { field.focus(); field.select(); } else no.focus();
  }
}
