/* The conversation. What pages ask and what they are told goes through `server.talk`; while an answer is being given a page
 * asks again as soon as it was told, and is kept waiting on the other side until there is something new. */
"use strict";

function mountChat(id, element, server) {
  const root = element.querySelector(".q-chat");
  if (!root) return;
  root.innerHTML = Q_CHAT;
  const at = (name) => root.querySelector(`[data-part=${name}]`);
  const log = at("log"), text = at("text"), send = at("send"), stop = at("stop"), who = at("who");
  let state = { version: 0, turns: [], targets: [] };
  let polling = false;
  let shown = [];
  let marks = []; // of what is shown, by which the app knows what it need not send again
  let keys = "";
  let failure = ""; // of what was last done here; it stays until something else is done
  let again = 0;
  let sent = null; // the message of which it is not known whether it arrived: an answer that got lost says nothing of that

  listenToActions(element, (_, data) => ask({ ...data, do: data.act }), () => {});

  /* Returns whether it was done. */
  async function ask(asked) {
    try {
      const next = await server.talk({ version: state.version, has: marks, ...asked });
      if (asked.do) failure = next.failure;
      show(next);
      if (next.file) saveFile(next.file);
      if (failure) keepTyped(asked);
    } catch (error) {
      if (asked.do) failure = LOST;
      keepTyped(asked);
      drawFailure();
      at("state").textContent = "The connection to the app was lost. Trying again …";
      clearTimeout(again);
      again = setTimeout(() => ask({}), 1500);
      return false;
    }
    poll();
    return !(asked.do && failure);
  }

  /* What was typed into a dialog and not taken stands in it when it is opened again; where its turn is gone, in the field below. */
  function keepTyped(asked) {
    if (asked.text === undefined || !asked.of) return;
    const button = [...log.querySelectorAll(`[data-act="${asked.do}"]`)]
      .find((one) => one.dataset.of === asked.of && one.dataset.side === asked.side);
    if (button) button.dataset.value = asked.text;
    else addToField(asked.text);
  }

  function addToField(words) {
    text.value = [words, text.value].filter((part) => part.trim()).join("\n");
    grow();
  }

  async function poll() {
    if (polling) return;
    polling = true;
    try {
      while (state.busy) {
        show(await server.talk({ version: state.version, has: marks }));
        await new Promise((done) => setTimeout(done, 60));
      }
    } catch (error) {
      setTimeout(() => { polling = false; poll(); }, 1500);
      return;
    }
    polling = false;
  }

  function drawFailure() {
    at("problems").innerHTML = failure || state.problems || "";
    at("problems").hidden = !(failure || state.problems);
  }

  function show(next) {
    const focused = root.contains(document.activeElement) ? document.activeElement : null;
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < 120;
    const grown = next.turns.length > state.turns.length;
    const emptied = !next.turns.length && state.turns.length > 0;
    state = next;
    if (sent && next.heard.includes(sent.key)) {
      if (text.value === sent.words) { text.value = ""; grow(); }
      if (failure === LOST) failure = "";
      sent = null;
    }
    drawTurns(next.turns, next.marks);
    // The words of an empty conversation are read from their beginning, also where a low window does not hold them.
    if (emptied) log.scrollTop = 0;
    else if (next.turns.length && (near || grown)) log.scrollTop = log.scrollHeight;
    at("empty").hidden = next.turns.length > 0;
    at("empty-title").textContent = next.canCompare ? "Ask both the same question" : "Ask the base model";
    at("empty-words").textContent = next.canCompare
      ? "The base model and your adapter answer side by side, from one model in memory. That is where the training shows."
      : "This is how it answers before any training. Once a run is done, its adapter answers beside it.";
    at("state").textContent = next.state;
    at("bar").hidden = next.busy !== "loading";
    drawFailure();
    at("note").textContent = next.note || "";
    at("context").textContent = [next.loaded, next.context].filter(Boolean).join(" · ");
    at("unload").hidden = !next.loaded;
    at("unseen").hidden = !next.unseen || Boolean(next.busy);
    if (next.own) at("unseen").dataset.confirm = "Such a row is asked in a fresh conversation: this one goes to the trash, at the end of the Runs tab, from where you can put it back. Rows that you kept stay.";
    else delete at("unseen").dataset.confirm;
    at("clear").hidden = next.turns.length === 0 || Boolean(next.busy);
    at("save").hidden = next.files.length === 0;
    for (const button of at("save").querySelectorAll("[data-as]")) button.hidden = !next.files.includes(button.dataset.as);
    send.hidden = Boolean(next.busy);
    stop.hidden = !next.busy;
    if (focused?.hidden) (next.busy ? stop : send).focus();
    for (const button of root.querySelectorAll("[data-mode]")) {
      const on = button.dataset.mode === next.mode;
      button.setAttribute("aria-checked", String(on));
      button.tabIndex = on ? 0 : -1;
      button.disabled = !next.canCompare && button.dataset.mode !== "base";
    }
    drawTargets(next);
    const suggestions = at("suggestions");
    suggestions.replaceChildren(...next.suggestions.map((words) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "q-suggestion";
      button.textContent = words;
      const key = newKey();
      button.addEventListener("click", () => ask({ do: "say", text: words, key })); // a double click asks once
      return button;
    }));
    fill(at("system"), next.system);
    for (const field of root.querySelectorAll("[data-sampling]")) fill(field, String(next.sampling[field.dataset.sampling]));
    at("temperature-shown").textContent = at("temperature").value;
    at("top-p-shown").textContent = at("top-p").value;
    if (next.draft !== undefined) { addToField(next.draft); text.focus(); }
  }

  function fill(field, value) {
    if (document.activeElement !== field && field.value !== value) field.value = value;
  }

  function drawTurns(turns, told) {
    turns.forEach((html, place) => {
      if (html === null) return;
      marks[place] = told[place];
      if (shown[place] === html) return;
      shown[place] = html;
      const old = log.querySelector(`[data-turn="${place}"]`);
      const node = document.createElement("section");
      node.className = "q-turn";
      node.dataset.turn = String(place);
      node.innerHTML = html;
      if (old) {
        for (const fold of old.querySelectorAll("details[data-key][open]")) {
          const same = node.querySelector(`details[data-key="${fold.dataset.key}"]`);
          if (same) same.open = true;
        }
        old.replaceWith(node);
      } else log.appendChild(node);
    });
    for (const node of [...log.querySelectorAll("[data-turn]")]) if (Number(node.dataset.turn) >= turns.length) node.remove();
    shown.length = marks.length = turns.length;
  }

  function drawTargets(next) {
    const now = JSON.stringify([next.targets, next.who]);
    if (now === keys || document.activeElement === who) return;
    keys = now;
    who.replaceChildren(...next.targets.map((group) => {
      const node = document.createElement("optgroup");
      node.label = group.label;
      node.append(...group.options.map((option) => Object.assign(new Option(option.label, option.key, false, option.key === next.who), { disabled: option.isOff || false })));
      return node;
    }));
    // A browser would show the first one in the place of a run that is gone.
    if (who.value !== next.who) who.selectedIndex = -1;
  }

  function saveFile({ name, text }) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000); // a browser may ask where to first
  }

  function newKey() {
    return `${Date.now()}-${Math.random()}`;
  }

  function grow() {
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight + 2, 200)}px`;
  }

  // What was typed stays until the app has it.
  async function say() {
    const words = text.value;
    if (!words.trim() || state.busy || text.readOnly) return;
    if (!sent || sent.words !== words) sent = { words, key: newKey() };
    text.readOnly = true;
    await ask({ do: "say", text: words, key: sent.key });
    text.readOnly = false;
  }

  at("form").addEventListener("submit", (event) => { event.preventDefault(); say(); });
  text.addEventListener("input", grow);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.busy) { event.preventDefault(); ask({ do: "stop" }); }
  });
  const modes = [...root.querySelectorAll("[data-mode]")];
  modes.forEach((button, place) => {
    button.addEventListener("click", () => ask({ do: "mode", mode: button.dataset.mode }));
    button.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      const next = modes[(place + move + modes.length) % modes.length];
      if (!next.disabled) { next.focus(); next.click(); }
    });
  });
  who.addEventListener("change", () => { const key = who.value; who.blur(); ask({ do: "choose", key }); });
  at("system").addEventListener("change", () => ask({ do: "system", text: at("system").value }));
  for (const field of root.querySelectorAll("[data-sampling]")) {
    field.addEventListener("input", () => {
      at("temperature-shown").textContent = at("temperature").value;
      at("top-p-shown").textContent = at("top-p").value;
    });
    field.addEventListener("change", () => {
      const values = {};
      for (const each of root.querySelectorAll("[data-sampling]")) values[each.dataset.sampling] = each.value;
      ask({ do: "sampling", values });
    });
  }
  ask({});
  qLive.mount(id, element, () => { if (!polling) ask({}); });
}

const LOST = "<strong>That did not reach the app.</strong> Do it again when the app answers; what you typed is still here.";
const Q_CHAT = `
<div class="q-chat-top">
  <label class="q-chat-who"><span>Talk to</span><select data-part="who" aria-label="Talk to"></select></label>
  <div class="q-switch3" role="radiogroup" aria-label="Who answers">
    <button type="button" role="radio" data-mode="base" aria-checked="false">Base</button>
    <button type="button" role="radio" data-mode="adapter" aria-checked="false">Adapter</button>
    <button type="button" role="radio" data-mode="both" aria-checked="true">Side by side</button>
  </div>
</div>
<details class="q-details q-chat-options" data-key="chat-options"><summary>System prompt and sampling</summary>
  <div class="q-chat-fields">
    <label class="q-field q-field-wide"><span>System prompt</span><small>What the model is told before the conversation. Empty: what its template says.</small>
      <textarea data-part="system" rows="2" dir="auto"></textarea></label>
    <label class="q-field"><span>Temperature <output data-part="temperature-shown" class="q-num"></output></span>
      <small>0 always takes the likeliest word: the same answer every time. 0.7 is lively, above 1 gets wild.</small>
      <input type="range" min="0" max="2" step="0.05" data-part="temperature" data-sampling="temperature" aria-label="Temperature"></label>
    <label class="q-field"><span>Top-p <output data-part="top-p-shown" class="q-num"></output></span>
      <small>Leaves out unlikely words: 0.9 chooses among the likeliest that make up 90 %.</small>
      <input type="range" min="0.05" max="1" step="0.05" data-part="top-p" data-sampling="top_p" aria-label="Top-p"></label>
    <label class="q-field"><span>Longest answer</span><small>In tokens; a token is about three quarters of a word.</small>
      <input type="number" min="1" max="32768" data-sampling="max_tokens" aria-label="Longest answer"></label>
    <label class="q-field"><span>Seed</span><small>The same seed and question give the same answer. Empty: a new one each time.</small>
      <input type="number" data-sampling="seed" placeholder="a new one each time" aria-label="Seed"></label>
  </div>
</details>
<div class="q-chat-log" data-part="log" tabindex="0" role="log" aria-label="Conversation" aria-live="off">
  <div class="q-chat-empty" data-part="empty">
    <h2 data-part="empty-title"></h2>
    <p data-part="empty-words"></p>
    <div class="q-suggestions" data-part="suggestions"></div>
  </div>
</div>
<div class="q-note q-note-bad" data-part="problems" role="alert" hidden></div>
<p class="q-chat-state q-small" role="status"><span data-part="state"></span><i class="q-chat-bar" data-part="bar" hidden></i></p>
<form class="q-composer" data-part="form">
  <textarea data-part="text" rows="1" dir="auto" placeholder="Ask something" aria-label="Message"></textarea>
  <button type="submit" class="q-button q-button-primary" data-part="send">Send</button>
  <button type="button" class="q-button" data-act="stop" data-part="stop" title="Escape" hidden>Stop</button>
</form>
<div class="q-chat-foot">
  <span class="q-chat-foot-tools">
    <button type="button" class="q-link" data-act="unseen" data-part="unseen" data-yes="Ask it" hidden>Try a row it has never seen</button>
    <details class="q-menu q-menu-words" data-menu data-part="save" hidden><summary>Save as a file</summary><div class="q-menu-list">
      <button type="button" class="q-button q-button-menu" data-act="save" data-as="markdown">To read (Markdown)</button>
      <button type="button" class="q-button q-button-menu" data-act="save" data-as="adapter">The adapter’s answers, as rows to learn from (JSONL)</button>
      <button type="button" class="q-button q-button-menu" data-act="save" data-as="base">The base model’s answers, as rows to learn from (JSONL)</button>
    </div></details>
    <button type="button" class="q-link" data-act="clear" data-part="clear" data-confirm="Clear this conversation? It goes to the trash, at the end of the Runs tab, from where you can put it back until that is emptied. Rows that you kept stay." data-yes="Clear" hidden>Clear</button>
    <button type="button" class="q-link" data-act="unload" data-part="unload" hidden>Free the memory</button>
  </span>
  <span class="q-small q-num" data-part="context"></span>
</div>
<p class="q-small" data-part="note" role="status"></p>`;
