// The little that the page does by itself: light or dark, opening a tab from a link, the bar at the bottom on small screens.
(() => {
  const KEY = "qlora-ui.theme";
  const TAB = "qlora-ui.tab";
  const root = document.documentElement;

  function paint(theme) {
    document.body.classList.toggle("dark", theme === "dark");
    root.dataset.theme = theme;
  }

  function preferred() {
    const kept = localStorage.getItem(KEY);
    if (kept) return kept;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  // On small screens the Ready card is a bar at the bottom that opens.
  function openCard(open) {
    const side = document.getElementById("q-side");
    if (side) side.dataset.open = open ? "yes" : "no";
    document.querySelector("[data-ready-toggle]")?.setAttribute("aria-expanded", String(open));
  }

  function go(tab, focus) {
    document.getElementById(`tab-${tab}-button`)?.click();
    openCard(false);
    if (!focus) { scrollTo({ top: 0 }); return; }
    let tries = 40;
    let unfolded = false;
    const look = () => {
      const place = document.getElementById(`${focus}-control`) || document.getElementById(focus);
      if (place && place.offsetParent === null && !unfolded) {
        // A folded group hides its controls: unfold it once.
        const closed = [...document.querySelectorAll(".q-fold")].find((fold) => fold.contains(place));
        if (closed && closed.offsetParent !== null) { unfolded = true; closed.querySelector("button")?.click(); }
      }
      // The tab's panel is drawn a moment after its button was pressed.
      if (!place || place.offsetParent === null) {
        if (!place && tries < 35 && !unfolded) {
          unfolded = true;
          const panel = document.getElementById(`tab-${tab}`);
          for (const fold of panel ? panel.querySelectorAll(".q-fold") : []) if (!fold.querySelector(":scope > button.open")) fold.querySelector("button")?.click();
        }
        if (tries--) setTimeout(look, 100);
        return;
      }
      place.scrollIntoView({ block: place.offsetHeight > innerHeight / 2 ? "start" : "center", behavior: "smooth" });
      (place.querySelector("input, textarea, select, button") || place).focus({ preventScroll: true });
      place.classList.add("q-shown");
      setTimeout(() => place.classList.remove("q-shown"), 1600);
    };
    look();
  }

  // A reload comes back to the tab that was open; a new visit begins at the first. Back goes to the tab before, not out of the app.
  function comeBack() {
    const kept = sessionStorage.getItem(TAB);
    let tries = 100;
    const look = () => {
      const button = kept && document.getElementById(kept);
      if (button) { if (button.getAttribute("aria-selected") !== "true") button.click(); }
      else if (kept && tries--) setTimeout(look, 100);
    };
    look();
    new MutationObserver(() => {
      const open = document.querySelector("#q-tabs [role=tab][aria-selected=true]");
      if (!open || !open.id) return;
      const before = sessionStorage.getItem(TAB) || document.querySelector("#q-tabs [role=tab]").id;
      sessionStorage.setItem(TAB, open.id);
      if (!history.state?.tab) history.replaceState({ ...history.state, tab: before }, "");
      if (history.state.tab !== open.id) history.pushState({ tab: open.id }, "");
    }).observe(document.body, { subtree: true, attributes: true, attributeFilter: ["aria-selected"] });
    addEventListener("popstate", (event) => document.getElementById(event.state?.tab)?.click());
  }

  // Browsers keep the clipboard from pages of other hosts that come without TLS, as ours does with --host.
  async function copyText(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const box = document.body.appendChild(document.createElement("textarea"));
      box.value = text;
      box.style.cssText = "position: fixed; opacity: 0";
      const before = document.activeElement;
      box.select();
      const isCopied = document.execCommand("copy");
      box.remove();
      before?.focus();
      return isCopied;
    }
  }

  document.addEventListener("click", (event) => {
    const to = event.target.closest("[data-go]");
    if (to) { event.preventDefault(); go(to.dataset.go, to.dataset.focus); return; }
    if (event.target.closest("[data-theme-toggle]")) {
      const next = document.body.classList.contains("dark") ? "light" : "dark";
      localStorage.setItem(KEY, next);
      paint(next);
      return;
    }
    if (event.target.closest("[data-ready-toggle]")) {
      openCard(document.getElementById("q-side").dataset.open !== "yes");
      return;
    }
    // The run that was begun, or waits, is shown behind it.
    if (event.target.closest("#q-start")) { openCard(false); return; }
    // The bar of a change goes with its buttons: the keyboard goes on at what stands below it, where a key that is still held does no harm.
    if (event.target.closest("#q-undo-back, #q-undo-close")) {
      document.querySelector("#q-tabs [role=tab][aria-selected=true]")?.focus({ preventScroll: true });
      return;
    }
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      copyText(copy.dataset.copy).then((isCopied) => {
        const words = copy.dataset.words || (copy.dataset.words = copy.textContent);
        copy.textContent = isCopied ? "Copied" : "Select and copy it by hand";
        setTimeout(() => { copy.textContent = words; }, isCopied ? 1200 : 4000);
      });
    }
  });

  // Gradio heads what passes by with its kind; ours says what happened. Several of a kind share a box: each keeps its own words.
  function headToast(box) {
    const titles = [...box.querySelectorAll(".q-toast-title")];
    for (const title of titles) {
      const before = title.previousSibling;
      if (before && before.nodeType === Node.TEXT_NODE && before.data.startsWith("HTTP ")) before.data = ""; // an upload's: ui/uploads.py
      if (!title.dataset.words) title.dataset.words = title.textContent;
      const words = titles.length > 1 ? title.dataset.words : ""; // alone it would be read out twice
      if (title.textContent !== words) title.textContent = words;
    }
    if (titles.length) box.dataset.title = titles.length > 1 ? "What to look at" : titles[0].dataset.words;
    const heading = box.firstElementChild?.children[1]?.firstElementChild?.firstChild;
    const words = `${box.dataset.title || "Note"} `;
    if (heading && heading.nodeType === Node.TEXT_NODE && heading.data !== words) heading.data = words;
  }

  function watchGradio() {
    new MutationObserver(() => {
      for (const box of document.querySelectorAll("[data-testid=toast-body]")) headToast(box);
      // An open list scrolls, so Tab would stop at it and lose its place when the list closes; arrows choose in it.
      for (const list of document.querySelectorAll("ul[role=listbox]:not([tabindex])")) list.tabIndex = -1;
    }).observe(document.body, { subtree: true, childList: true });
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") openCard(false);
  });
  // Gradio reads a key a moment after it was pressed: at Tab it would open the list again that the lost focus has just closed, and Shift opens it.
  document.addEventListener("keydown", (event) => {
    if (["Tab", "Shift", "Control", "Alt", "Meta"].includes(event.key) && isCombo(event.target)) event.stopPropagation();
  }, true);

  // Gradio's list lets go of the focus with a choice, and the keyboard would begin again at the top of the page: it stays where it was.
  let chose = 0;
  let isReturning = false;
  const isCombo = (place) => Boolean(place.matches?.("[role=combobox]"));
  document.addEventListener("keydown", (event) => { if (event.key === "Enter" && isCombo(event.target)) chose = Date.now(); }, true);
  document.addEventListener("mousedown", (event) => {
    if (event.target.closest?.("[role=option]")) chose = Date.now();
    // Gradio opens the list with the focus, which is there already.
    else if (isCombo(event.target) && event.target === document.activeElement && event.target.getAttribute("aria-expanded") !== "true") event.target.blur();
  }, true);
  document.addEventListener("focusout", (event) => {
    if (!isCombo(event.target) || event.relatedTarget || Date.now() - chose > 2000) return;
    chose = 0;
    setTimeout(() => {
      if (document.activeElement !== document.body) return;
      isReturning = true; // the list stays closed
      event.target.focus({ preventScroll: true });
      isReturning = false;
    });
  });
  for (const kind of ["focus", "focusin"]) {
    document.addEventListener(kind, (event) => { if (isReturning) event.stopImmediatePropagation(); }, true);
  }

  // The bar of a change comes above the tabs: the page scrolls by its height, so that what is under the pointer stays there.
  // Browsers do so by themselves, but not at the top of a page, nor where a page is too short to scroll.
  function holdPlace() {
    const bar = document.getElementById("q-undo-place");
    const work = document.getElementById("q-work");
    if (!bar || !work) { setTimeout(holdPlace, 100); return; }
    let before = bar.offsetHeight;
    new ResizeObserver(() => {
      const height = bar.offsetHeight;
      work.style.minHeight = height ? `calc(100vh + ${height}px)` : "";
      if (height > before && scrollY < 1) scrollBy({ top: height - before, behavior: "instant" });
      before = height;
    }).observe(bar);
  }

  // A browser whose language has decimal points drops a comma from a number: 1,5 passes became 15.
  document.addEventListener("beforeinput", (event) => {
    if (event.target.type !== "number" || !/^\s*-?\d*,\d*\s*$/.test(event.data || "")) return;
    if ((1.5).toLocaleString(navigator.language).includes(",")) return;
    event.preventDefault();
    document.execCommand("insertText", false, event.data.trim().replace(",", "."));
  }, true);

  const start = () => paint(preferred());
  const begin = () => { start(); comeBack(); watchGradio(); holdPlace(); };
  if (document.body) begin(); else document.addEventListener("DOMContentLoaded", begin);
  // Gradio sets its own theme once when it mounts; ours comes after.
  addEventListener("load", () => { start(); setTimeout(start, 300); });
  window.qlora = { go };
})();
