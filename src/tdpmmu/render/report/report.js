"use strict";
// The page: one run at a time, one step at a time.  Every text comes from the data by textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PANELS = ["tables", "cpus", "locks", "owed"];
  const find = (id) => document.getElementById(id);
  let run = null, number = 0, stops = [], at = 0;

  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const child of children) if (child !== null && child !== "") node.append(child);
    return node;
  }
  const arrows = (text) => text.replace(/(^| )->(?= |$)/g, "$1\u2192");
  const last = () => run.steps.length;
  const step = () => stops[at];
  const every = () => find("every").checked;
  const lines = () => run.lines[every() ? "all" : "some"];
  const colour = (thread) => `var(--t${run.order.indexOf(thread) % 6})`;

  // --- which steps there are -------------------------------------------------------------------

  function findStops() {
    const some = every() ? run.steps.map((_, i) => i + 1) : lines().map((line) => line.step);
    const wanted = new Set([0, last(), ...some]);
    for (const mark of Object.keys(run.marks)) wanted.add(Number(mark));
    stops = [...wanted].sort((a, b) => a - b);
  }
  function nearest(wanted) {
    let best = 0;
    stops.forEach((stop, i) => {
      if (Math.abs(stop - wanted) < Math.abs(stops[best] - wanted)) best = i;
    });
    return best;
  }
  function go(i) {
    at = Math.max(0, Math.min(stops.length - 1, i));
    draw();
  }
  function turn(way) {
    const who = (i) => run.steps[Math.max(stops[i], 1) - 1].thread;
    let i = at + way;
    while (i > 0 && i < stops.length - 1 && who(i) === who(at)) i += way;
    go(i);
  }

  // --- the steps, in columns -------------------------------------------------------------------

  function drawLines() {
    const list = find("lines"), lanes = find("lanes");
    list.replaceChildren();
    lanes.replaceChildren();
    const gap = laneGap(list);
    list.style.background = run.order
      .map((who, i) => `linear-gradient(${colour(who)} 0 0) ${i * gap}px 0 / 1px 100% no-repeat`)
      .join(", ");
    drawNames(lanes, gap);
    let block = null, who = null;
    lines().forEach((line, i) => {
      if (line.thread !== who) {
        who = line.thread;
        block = make("div", "turn", make("div", "name", run.threads[who]));
        block.style.setProperty("--who", colour(who));
        block.style.marginLeft = `${run.order.indexOf(who) * gap}px`;
        list.append(block);
      }
      block.append(drawLine(line, i));
    });
  }
  function laneGap(list) {
    const others = Math.max(1, run.order.length - 1);
    const room = list.clientWidth - 300;
    return Math.max(9, Math.min(130, Math.floor(room / others)));
  }
  function drawNames(lanes, gap) {
    const names = run.order.map((who, i) => {
      const name = make("span", "", run.threads[who]);
      name.style.cssText = `left:${i * gap}px; color:${colour(who)}; border-left:3px solid`;
      lanes.append(name);
      return name;
    });
    const tight = names.slice(0, -1).some((name) => name.offsetWidth > gap);
    names.forEach((name, i) => { name.style.top = tight ? `${i * 19}px` : "0"; });
    lanes.style.height = `${tight ? names.length * 19 + 4 : 24}px`;
  }
  function drawLine(line, i) {
    const text = make("span", "text");
    for (const piece of line.text) text.append(typeof piece === "string" ? arrows(piece) : link(...piece));
    for (const note of line.notes) text.append(make("span", "note", note));
    const before = i ? lines()[i - 1] : null;
    const first = line.about !== "call" && !(before && before.about !== "call" && before.step === line.step);
    const node = make("div", `line ${line.about}`, make("span", "number", first ? String(line.step) : ""), text);
    node.style.setProperty("--depth", line.depth);
    node.dataset.step = line.step;
    node.id = `line-${i}`;
    node.setAttribute("role", "option");
    node.addEventListener("click", () => go(nearest(line.step)));
    return node;
  }
  function link(name, functions) {
    const node = make("a", "fn", name);
    node.addEventListener("click", (event) => {
      event.stopPropagation();
      showSource(functions.map((one) => [one, 0]));
    });
    return node;
  }

  // --- where we are ----------------------------------------------------------------------------

  function draw() {
    const now = step();
    const slider = find("slider");
    slider.max = last();
    slider.value = now;
    slider.setAttribute("aria-valuetext", now ? `step ${now} of ${last()}, ${run.threads[run.steps[now - 1].thread]}` : "before the first step");
    find("cursor").style.left = `calc(8px + (100% - 16px) * ${last() ? now / last() : 0})`;
    for (const [id, off] of [["first", at === 0], ["back", at === 0], ["next", at === stops.length - 1], ["end", at === stops.length - 1]]) find(id).disabled = off;
    let here = null;
    for (const node of find("lines").querySelectorAll(".line")) {
      const its = Number(node.dataset.step), call = node.classList.contains("call");
      node.classList.toggle("here", its === now && !call);
      node.classList.toggle("later", its > now);
      node.setAttribute("aria-selected", String(its === now && !call));
      if (its === now && !call && here === null) here = node;
    }
    for (const node of find("moments").querySelectorAll("button")) node.setAttribute("aria-current", String(Number(node.dataset.step) === now));
    const box = find("steps-scroll");
    if (here === null) box.scrollTop = 0;
    else {
      find("lines").setAttribute("aria-activedescendant", here.id);
      const its = here.getBoundingClientRect(), frame = box.getBoundingClientRect();
      if (its.top < frame.top + find("lanes").offsetHeight || its.bottom > frame.bottom - 24) {
        box.scrollTop += its.top - frame.top - box.clientHeight * 0.5;
      }
    }
    drawNow(now);
    PANELS.forEach((name, panel) => drawPanel(name, panel, now));
    try { history.replaceState(null, "", `#${number + 1}.${now}`); } catch { /* some browsers, from a file */ }
  }
  function drawNow(now) {
    const box = find("now");
    box.replaceChildren();
    if (!now) {
      box.style.removeProperty("--who");
      box.append(make("div", "where", "Before the first step"), make("div", "what", "Page tables and TLBs as the run begins"));
      return;
    }
    const one = run.steps[now - 1];
    box.style.setProperty("--who", colour(one.thread));
    const where = make("div", "where", `Step ${now} of ${last()}`, make("span", "who", run.threads[one.thread]));
    const stack = make("span", "stack");
    one.stack.forEach(([fn, line], i) => {
      if (i) stack.append(" \u203a ");
      const button = make("button", "fn", run.functions[fn].name);
      button.title = "the model's source";
      button.addEventListener("click", () => showSource([[fn, line]]));
      stack.append(button);
    });
    where.append(stack);
    box.append(where);
    const said = run.lines.some.concat(run.lines.all).filter((line) => line.step === now && line.about !== "call").map((line) => arrows(line.text.join("")));
    for (const text of new Set(said.length ? said : [one.op])) box.append(make("div", "what", text));
    for (const [name, was, is] of one.changed) box.append(make("div", "more", `${name}: ${was || "\u2013"} \u2192 ${is || "\u2013"}`));
    for (const note of run.marks[now] || []) box.append(make("div", "alarm", `\u25c4 ${note}`));
    if (now === last()) box.append(make("div", "alarm", run.end ? `*** ${run.end}` : `\u2716 ${run.kind.toUpperCase()}: ${run.sentence}`));
  }

  // --- the state -------------------------------------------------------------------------------

  const rowsAt = (stop, panel) => run.panels[run.states[stop][panel]].map((row) => run.rows[row]);

  function drawPanel(name, panel, now) {
    const rows = rowsAt(now, panel);
    const before = at ? rowsAt(stops[at - 1], panel) : rows;
    const old = new Map(before.map((row) => [row[0], row]));
    const present = new Set(rows.map((row) => row[0]));
    const nodes = [];
    let i = 0;
    const gone = () => {
      for (; i < before.length && !present.has(before[i][0]); i++) {
        if (before[i][4] !== "idle") nodes.push(drawRow(before[i], "gone", null));
      }
    };
    for (const row of rows) {
      gone();
      const was = old.get(row[0]);
      if (was && before[i] && before[i][0] === row[0]) i++;
      nodes.push(drawRow(row, !was ? (row[4] === "idle" ? "" : "new") : String(was) !== String(row) ? "lit" : "", was));
    }
    gone();
    find(name).replaceChildren(...nodes);
  }
  function drawRow([, depth, label, text, kind, note, detail], how, was) {
    const [sign, word] = { lit: ["\u25cf", "changed: "], new: ["+", "new: "], gone: ["\u2212", "gone: "] }[how] || ["", ""];
    const mark = make("span", "mark", sign);
    if (word) mark.setAttribute("aria-label", word);
    const node = make("div", `row ${kind} ${how === "new" ? "lit" : how}`, mark, make("span", "label", label), make("span", "text", arrows(text)));
    if (how === "lit" && was[3] !== text) node.append(make("span", "was", arrows(was[3].split(": ").pop())));
    if (note && how !== "gone") node.append(make("span", "note", note));
    node.style.setProperty("--depth", depth);
    node.setAttribute("role", "listitem");
    if (detail) node.title = detail;
    return node;
  }

  // --- sources and help ------------------------------------------------------------------------

  function showSource(wanted) {
    const body = find("source-body");
    body.replaceChildren();
    find("source-name").textContent = run.functions[wanted[0][0]].name;
    for (const [fn, line] of wanted) {
      const one = run.functions[fn];
      body.append(make("h3", "", `${one.model} \u2014 ${one.file}:${line || one.first}`));
      const text = make("pre", "");
      one.source.split("\n").forEach((code, i) => {
        const row = make("span", one.first + i === line ? "at" : "", make("i", "", `${String(one.first + i).padStart(5)}  `), code);
        text.append(row);
      });
      body.append(text);
    }
    find("source").showModal();
    const here = body.querySelector(".at");
    if (here) here.scrollIntoView({ block: "center" });
  }

  // --- starting --------------------------------------------------------------------------------

  function drawMoments() {
    const box = find("moments");
    for (const node of box.querySelectorAll("button")) node.remove();
    const moments = Object.entries(run.marks).map(([mark, notes]) => [Number(mark), notes.join("; "), ""]);
    if (last() && !run.end) moments.push([last(), run.kind, "wrong"]);
    for (const [mark, text, className] of moments.sort((a, b) => a[0] - b[0]).reverse()) {
      const button = make("button", className, make("b", "", String(mark)), text);
      button.dataset.step = mark;
      button.addEventListener("click", () => go(nearest(mark)));
      box.prepend(button);
    }
  }
  function choose(wanted, wantedStep) {
    number = Math.max(0, Math.min(data.length - 1, wanted));
    run = data[number];
    document.querySelectorAll(".run").forEach((node, i) => { node.hidden = i !== number; });
    document.querySelectorAll(".tabs button").forEach((node, i) => node.setAttribute("aria-selected", String(i === number)));
    document.querySelectorAll(".strip").forEach((node, i) => node.toggleAttribute("hidden", i !== number));
    find("track").style.setProperty("--lanes", run.order.length);
    redraw(wantedStep === undefined ? last() : wantedStep);
    drawMoments();
    draw();
  }
  function redraw(wantedStep) {
    findStops();
    at = nearest(wantedStep);
    drawLines();
    draw();
  }
  const KEYS = {
    ArrowRight: () => go(at + 1), j: () => go(at + 1), ArrowLeft: () => go(at - 1), k: () => go(at - 1),
    Home: () => go(0), End: () => go(stops.length - 1), PageDown: () => turn(1), PageUp: () => turn(-1),
    a: () => { find("every").click(); }, t: () => find("theme").click(), "?": () => find("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.getAttribute("role") === "tab" && event.key.startsWith("Arrow")) return;
    const action = KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  for (const [id, action] of [["first", KEYS.Home], ["back", KEYS.ArrowLeft], ["next", KEYS.ArrowRight], ["end", KEYS.End], ["keys", KEYS["?"]]]) find(id).addEventListener("click", action);
  find("slider").addEventListener("input", (event) => go(nearest(Number(event.target.value))));
  find("every").addEventListener("change", () => redraw(step()));
  find("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.querySelectorAll(".tabs button").forEach((node, i) => node.addEventListener("click", () => choose(i)));
  document.querySelectorAll("dialog .close").forEach((node) => node.addEventListener("click", () => node.closest("dialog").close()));
  document.querySelectorAll("[data-copy]").forEach((node) => node.addEventListener("click", async () => {
    await navigator.clipboard.writeText(node.dataset.copy);
    node.textContent = "copied";
  }));
  let width = innerWidth;
  addEventListener("resize", () => { if (run && innerWidth !== width) { width = innerWidth; redraw(step()); } });
  const wanted = /^#(\d+)\.(\d+)$/.exec(location.hash);
  if (data.length) choose(wanted ? Number(wanted[1]) - 1 : 0, wanted ? Number(wanted[2]) : undefined);
})();
