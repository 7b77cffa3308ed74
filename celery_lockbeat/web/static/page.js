"use strict";
// The browser's part: it follows the server's news, asks for what has changed of the view that is shown, and puts it in its place.
// Nothing here is needed to read a page, but for the timeline of an entry.
(() => {
  const $ = (selector) => document.querySelector(selector);
  const base = document.body.dataset.base;

  // -- times: counted here, by the server's clock -----------------------------------------------------------------------
  let ahead = 0; // by how much the server's clock is ahead, in seconds
  const status = () => $("#status");
  const now = () => {
    const { state, since } = standing();
    // while nobody answers, nothing becomes late that may have been done
    if (status().dataset.cut) return Number(status().dataset.cut);
    return state === "away" && since ? since : Date.now() / 1000 + ahead;
  };
  const standing = () => {
    const away = status().querySelector("[data-for]");
    return { state: status().dataset.state, since: away ? Number(away.dataset.for) : 0 };
  };
  const setClock = () => { ahead = Number(status().dataset.now) - Date.now() / 1000; };

  const span = (seconds) => {
    if (seconds < 60) return `${Math.floor(seconds)} s`;
    if (seconds < 600) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} min`;
    return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
  };
  const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };

  // of a thousand rows some thirty are seen: the others' times are told when they come near
  const NEAR = 800;
  const boxOf = (row) => row.getBoundingClientRect();
  function near() {
    const rows = $("#rows").rows, found = [];
    let low = 0, high = rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (boxOf(rows[middle]).bottom < -NEAR) low = middle + 1; else high = middle;
    }
    while (low < rows.length && boxOf(rows[low]).top < innerHeight + NEAR) found.push(rows[low++]);
    return found;
  }
  const dues = () => $("#rows") ? near().flatMap((row) => [...row.querySelectorAll("[data-due]")]) : document.querySelectorAll("[data-due]");

  let told = 0;
  addEventListener("scroll", () => { if (Math.abs(scrollY - told) > NEAR / 2) { told = scrollY; tick(); } }, { passive: true });

  function tick() {
    const at = now();
    for (const element of dues()) {
      const left = Number(element.dataset.due) - at;
      const listed = element.dataset.listed !== "0";
      // two seconds: it is on its way into the journal
      const paused = "paused" in element.dataset, late = left < -2 && !paused;
      put(element, paused ? "paused" : left >= 1 ? `in ${span(left)}` : !late ? "now" : listed ? `${span(-left)} late` : "no beat");
      element.classList.toggle("is-late", late && listed);
      element.classList.toggle("is-gone", late && !listed);
    }
    const real = Date.now() / 1000 + ahead;
    for (const element of document.querySelectorAll("[data-since]")) put(element, span(Math.max(0, at - element.dataset.since)));
    for (const element of document.querySelectorAll("[data-ago]")) put(element, `${span(Math.max(0, real - element.dataset.ago))} ago`);
    for (const element of document.querySelectorAll("[data-for]")) put(element, span(Math.max(0, real - element.dataset.for)));
    for (const element of document.querySelectorAll("[data-until]")) put(element, span(Math.max(0, element.dataset.until - at)));
  }

  // -- putting things in their places -----------------------------------------------------------------------------------
  const isSame = (before, after) =>
    after.dataset.v !== undefined ? before.dataset.v === after.dataset.v : before.isEqualNode(after);

  function replace(before, after) {
    for (const opened of before.querySelectorAll("details[open]")) {
      const id = opened.closest("[id]")?.id;
      const place = [...before.querySelectorAll("details")].indexOf(opened);
      const twin = id && id !== before.id ? after.querySelector(`#${CSS.escape(id)} details`) : after.querySelectorAll("details")[place];
      if (twin) twin.open = true;
    }
    const focused = before.contains(document.activeElement) ? document.activeElement : null;
    const place = focused ? [...before.querySelectorAll("a, button, input, summary, [tabindex]")].indexOf(focused) : -1;
    before.replaceWith(after);
    if (place >= 0) after.querySelectorAll("a, button, input, summary, [tabindex]")[place]?.focus({ preventScroll: true });
  }

  function sync(list, wanted) {
    // rows have ids: those that are the same stay as they are
    const known = new Map([...list.children].map((child) => [child.id, child]));
    let place = list.firstElementChild;
    for (const after of [...wanted.children]) {
      const before = known.get(after.id);
      known.delete(after.id);
      if (before && isSame(before, after)) {
        if (before === place) place = place.nextElementSibling;
        else list.insertBefore(before, place);
      } else if (before) {
        if (before === place) place = place.nextElementSibling;
        else list.insertBefore(before, place);
        replace(before, after);
      } else list.insertBefore(after, place);
    }
    for (const gone of known.values()) gone.remove();
  }

  function restate(before, after) {
    // it stays, for what a screen reader listens to must: only what it says is another
    before.className = after.className;
    Object.assign(before.dataset, after.dataset);
    delete before.dataset.cut;
    put(before.querySelector("[aria-live]"), after.querySelector("[aria-live]").textContent);
    const said = before.querySelector(".away"), says = after.querySelector(".away");
    if (said && says) put(said.querySelector("code"), says.querySelector("code").textContent);
    else if (said) said.remove();
    else if (says) before.append(says);
  }

  function patch(before, after) {
    if (after.id === "status") return restate(before, after);
    if (after.hasAttribute("data-keyed")) return sync(before, after);
    const lists = after.querySelectorAll("[data-keyed]");
    if (lists.length && [...lists].every((each) => before.querySelector(`#${each.id}`))) {
      // what is around a list is replaced, the list itself is kept
      const focused = document.activeElement;
      for (const each of lists) {
        const kept = before.querySelector(`#${each.id}`);
        sync(kept, each);
        each.replaceWith(kept);
      }
      replace(before, after);
      if (after.contains(focused)) focused.focus({ preventScroll: true });
      return undefined;
    }
    if (!isSame(before, after)) replace(before, after);
  }

  // where all that is shown has changed at once, as when the last beat is gone, the browser gets its turn in between
  const AT_ONCE = 40;
  const frame = () => new Promise(requestAnimationFrame);

  async function place(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    const given = [...template.content.children].flatMap((each) => (each.tagName === "TABLE" ? [...each.tBodies] : [each]));
    let placed = 0;
    for (const after of given.flatMap((each) => ("some" in each.dataset ? [...each.rows] : [each]))) {
      const before = after.id && document.getElementById(after.id);
      if (before) patch(before, after);
      if (++placed % AT_ONCE === 0) await frame();
    }
    setClock();
    tick();
  }

  // -- what is new --------------------------------------------------------------------------------------------------------
  let asked = false, again = false, next = 0, timer = 0;

  function isHeld() {
    // rows that one reads do not move away
    const held = $("[data-hold]");
    return held && (held.matches(":hover") || held.contains(document.activeElement) || held.querySelector("details[open]") || scrollY > 200);
  }

  async function refresh() {
    // what asks, or says what went wrong, stays as it is
    if (document.hidden || !$("[data-version]")) return;
    if (asked) { again = true; return; }
    const wait = next - performance.now();
    if (wait > 0) { clearTimeout(timer); timer = setTimeout(refresh, wait); return; }
    if (isHeld()) { clearTimeout(timer); timer = setTimeout(refresh, 1000); return; }
    asked = true; again = false;
    const began = performance.now();
    try {
      const url = new URL(location.href);
      url.searchParams.set("part", $("[data-version]").dataset.version);
      url.searchParams.set("at", status().dataset.now);
      const answer = await fetch(url, { headers: { Accept: "text/html" } });
      if (answer.ok || answer.status === 503) await place(await answer.text());
      await refreshStory();
    } catch { /* the stream says so */ } finally {
      // what takes long is asked for less often
      next = performance.now() + Math.max(1000, 5 * (performance.now() - began));
      asked = false;
      if (again) refresh();
      wake();
    }
  }
  let waking = 0;
  function wake() {
    // what the server knows will have changed by then, though nothing happens
    clearTimeout(waking);
    const soon = $("[data-again-in]")?.dataset.againIn;
    if (soon) waking = setTimeout(refresh, Number(soon) * 1000);
  }

  let stream = null;
  function follow() {
    if (stream) stream.close();
    stream = new EventSource(`${base}/events`);
    stream.addEventListener("news", refresh);
    // the server lets nobody follow for long: it is no trouble
    stream.addEventListener("again", follow);
    stream.addEventListener("open", () => { if (status().dataset.cut) refresh(); });
    stream.addEventListener("error", () => {
      const element = status();
      element.dataset.cut ||= Date.now() / 1000 + ahead;
      element.className = "status is-cut";
      put(element.querySelector("[aria-live]"), "no connection");
      // a server that refuses is not asked again by the browser itself
      if (stream?.readyState === EventSource.CLOSED) setTimeout(() => { if (!document.hidden) follow(); }, 5000);
    });
  }
  document.addEventListener("visibilitychange", () => {
    // a hidden tab follows nothing: browsers have six connections for a server, and others may want one
    if (document.hidden) { stream?.close(); stream = null; } else { follow(); }
  });

  // -- the story of an entry: its timeline, which moves and zooms ----------------------------------------------------------
  let storyNext = 0, storyAsked = false, rowBefore = "";

  async function refreshStory() {
    const story = $("#story[data-live]"), row = $("#facts")?.dataset.row;
    if (!story || !story.dataset.story || storyAsked || performance.now() < storyNext) return;
    // a time that ends now goes on by itself, but it costs something
    if (row === rowBefore && performance.now() < storyNext + 10000) return;
    if (picking || story.querySelector(".drawn:hover")) return;
    rowBefore = row;
    await tell(story.dataset.story);
  }

  async function tell(url) {
    storyAsked = true;
    const began = performance.now();
    $("#story").setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(url, { headers: { Accept: "text/html" } });
      const before = $("#story").dataset.story;
      await place(await answer.text());
      if (!$("#story").dataset.story) $("#story").dataset.story = before;
    } finally {
      storyNext = performance.now() + Math.max(2000, 10 * (performance.now() - began));
      storyAsked = false;
      $("#story").removeAttribute("aria-busy");
    }
  }

  const go = (url) => {
    const shown = new URL(location.href), wanted = new URL(url, location.href);
    for (const name of ["span", "from", "to"]) {
      if (wanted.searchParams.has(name)) shown.searchParams.set(name, wanted.searchParams.get(name));
      else shown.searchParams.delete(name);
    }
    history.replaceState(null, "", shown);
    return tell(wanted.href);
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-go]");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    const label = link.getAttribute("aria-label") ?? link.textContent;
    go(link.href).then(() => {
      // the same button again, for who goes on by keyboard
      [...document.querySelectorAll("a[data-go]")].find((each) => (each.getAttribute("aria-label") ?? each.textContent) === label)?.focus({ preventScroll: true });
    });
  });

  let picking = null;
  const timeAt = (event, svg) => {
    const box = svg.getBoundingClientRect();
    const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return Number(svg.dataset.begin) + part * (Number(svg.dataset.end) - Number(svg.dataset.begin));
  };
  document.addEventListener("pointerdown", (event) => {
    const drawn = event.target.closest?.(".drawn");
    if (!drawn || event.button !== 0 || event.pointerType === "touch") return;
    const mark = document.createElement("div");
    mark.className = "picked";
    drawn.append(mark);
    picking = { drawn, mark, svg: drawn.querySelector("svg"), from: event.clientX, begin: timeAt(event, drawn.querySelector("svg")) };
    event.preventDefault();
  });
  document.addEventListener("pointermove", (event) => {
    if (!picking) return;
    const box = picking.drawn.getBoundingClientRect();
    const low = Math.max(Math.min(picking.from, event.clientX), box.left), high = Math.min(Math.max(picking.from, event.clientX), box.right);
    // set by the script, which the Content-Security-Policy allows
    picking.mark.style.left = `${low - box.left}px`;
    picking.mark.style.width = `${Math.max(0, high - low)}px`;
  });
  document.addEventListener("pointerup", (event) => {
    if (!picking) return;
    const { drawn, mark, svg, from, begin } = picking;
    picking = null;
    mark.remove();
    if (Math.abs(event.clientX - from) < 5) return;
    const [low, high] = [begin, timeAt(event, svg)].sort((a, b) => a - b);
    if (high - low < 1) return;
    const url = new URL(drawn.dataset.zoom, location.href);
    url.searchParams.set("from", low.toFixed(3));
    url.searchParams.set("to", high.toFixed(3));
    go(url.href);
  });

  // -- keys ----------------------------------------------------------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, textarea")) return;
    const search = $("input[type=search]");
    if (search) { event.preventDefault(); search.focus(); search.select(); }
  });

  setClock();
  tick();
  setInterval(tick, 1000);
  if ($("#story")?.dataset.story) { rowBefore = $("#facts").dataset.row; tell($("#story").dataset.story); }
  if (!document.hidden) follow();
  wake();
})();
