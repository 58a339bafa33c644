/* What is new. Once a second while the page is in sight, each `unseenMs` while it is not, and at once when it is looked at again, the
 * page asks the app what changed since the last answer that it has (`receipt`): mostly nothing. What did goes to the views (live.js).
 * An answer that gets lost is harmless: the receipt tells the app, which then sends all anew. (see ui/pulse.py) */
"use strict";

const GONE =
  "<strong>The app does not answer.</strong> If it has ended, start it again (<code>python3 start.py</code>): a run can go on from its last checkpoint.";

function mountPulse(element, trigger, server, everyMs, unseenMs) {
  const SLOW_MS = 10_000; // an ask that is out for so long is given up: a laptop that slept, a line that broke
  const GONE_AFTER = 3; // one or two get lost on their way
  let receipt = "";
  let number = 0;
  let answered = 0;
  let asked = -Infinity;
  let isOut = false;
  let isFresh = false; // something was done since the last ask
  let news = "0";
  let missed = 0; // asks without an answer since the last one that had one

  async function ask(fresh = false) {
    isFresh ||= fresh;
    if (isOut && performance.now() - asked < SLOW_MS) return;
    if (isOut) miss();
    const mine = ++number;
    const form = document.querySelector("#q-has-form :is(input, textarea)")?.value ?? "";
    const sent = { receipt, form, inputs: qLive.inputs(), fresh: isFresh };
    isOut = true;
    isFresh = false;
    asked = performance.now();
    let isAnswered = false;
    try {
      const answer = await server.news(sent);
      // Gradio swallows what goes wrong on the way and gives nothing; nothing new is null.
      if (answer === undefined) throw new Error("no answer");
      isAnswered = mine > answered;
      if (isAnswered) hear(mine, answer);
    } catch {
      isFresh ||= sent.fresh; // the next beat asks again
      if (mine === number) miss();
    }
    if (mine !== number) return;
    isOut = false;
    if (isAnswered && isFresh) ask();
  }

  // What stands on the page is old by now, and looks as if it lived.
  function miss() {
    if (++missed < GONE_AFTER || document.getElementById("q-gone")) return;
    const bar = document.createElement("div");
    bar.id = "q-gone";
    bar.setAttribute("role", "alert");
    bar.innerHTML = GONE;
    document.body.prepend(bar);
    document.body.dataset.gone = "yes";
  }

  function isBack() {
    missed = 0;
    document.getElementById("q-gone")?.remove();
    delete document.body.dataset.gone;
  }

  function hear(mine, answer) {
    answered = mine;
    isBack();
    if (answer && answer.reload) {
      location.reload(); // the app was updated under this page
      return;
    }
    if (answer && answer.views) {
      qLive.tell(answer.views);
      receipt = answer.receipt;
    }
    // Gradio shows answers as they come: one that was slow on its way puts old numbers over new ones.
    if (answer && answer.form_is_old) trigger("found");
    // What lives moves with it (.q-chip-live in frame.css), and stands still when the app is gone.
    document.body.dataset.beat = document.body.dataset.beat === "1" ? "0" : "1";
  }

  function lookedAt() {
    if (!element.isConnected) document.removeEventListener("visibilitychange", lookedAt);
    else if (!document.hidden) ask();
  }

  // Something that the settings depend on was found out in the background.
  qLive.mount("q-news", element, (value) => {
    if (value !== news) trigger("found");
    news = value;
  });
  qLive.begin(ask);
  document.addEventListener("visibilitychange", lookedAt);
  const clock = setInterval(() => {
    if (!element.isConnected) clearInterval(clock);
    else if (!document.hidden || performance.now() - asked > unseenMs - everyMs / 2) ask();
  }, everyMs);
  ask();
}
