"use strict";
// What devices and the server send is only ever text: nodes are made here, and nothing is parsed as HTML.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a89a00", "#777777"]; // Okabe and Ito
const PROBLEMS = { damaged: 0, revoked: 1, rejected: 2, refused: 3, offline: 4, new: 5 };
const state = { status: null, devices: new Map(), rounds: new Map(), events: new Map(), affinity: null };
const session = { may_read: true, may_act: false };
const order = { key: "problem", isDown: false };
const $ = (id) => document.getElementById(id);

function node(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children.filter((each) => each !== null));
  return made;
}
const put = (id, ...children) => $(id).replaceChildren(...children.filter((each) => each !== null));
const say = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
const show = (id, isShown) => { $(id).hidden = !isShown; };

// Figures
function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}
const clock = (at_s) => new Date(at_s * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const bytes = (number) => (number === null ? "–" : `${Math.round(number / 1048576)} MiB`);
const joules = (j, isEstimated, isPartial) =>
  j === null ? "–" : `${isPartial ? "≥ " : ""}${j >= 10000 ? `${(j / 1000).toFixed(1)} kJ` : `${j.toPrecision(3)} J`}${isEstimated ? " est." : ""}`;

// Now
function drawNow() {
  const status = state.status, current = status.open;
  document.title = `${status.federation}: ${status.state} — MAS Edge`;
  say("federation", status.federation);
  say("about", `MAS Edge ${status.version}, ${status.tasks.length} tasks, ${status.known} boards`);
  say("says", status.says);
  const facts = [];
  const fact = (name, text) => facts.push(node("div", {}, node("small", {}, name), node("br"), text));
  if (current !== null && current.members > 0) {
    const age = current.age_s === null ? "" : `, ${duration(current.age_s)}`;
    fact("this round", `${current.results} of ${current.members} results${age}; it needs ${current.quorum}`);
    if (current.deadline_in_s !== null) fact("closes at the latest", `in ${duration(current.deadline_in_s)}`);
    const names = current.waiting_for.slice(0, 3).map((each) => `${each.device} (${each.stage === null ? each.doing : `${each.stage} ${each.done}/${each.total}`})`);
    if (current.unanswered > names.length) names.push(`${current.unanswered - names.length} more`);
    if (names.length) fact("waiting for", names.join(", "));
  }
  fact("boards", `${status.online} of ${status.known} online; a round needs ${status.needed}`);
  if (status.phase_left_s !== null)
    fact("this phase", `about ${duration(status.phase_left_s)} left, until ${clock(status.at_s + status.phase_left_s)}`);
  const losses = Object.entries(status.losses).map(([task, loss]) => `${task} ${loss.toFixed(4)}`);
  if (losses.length) fact("loss", losses.join("  "));
  const refused = Object.entries(status.refused).map(([why, count]) => `${count} × ${why}`);
  if (refused.length) fact("refused", refused.join(", "));
  put("facts", ...facts);
  put("phases", ...status.phases.map((phase) => {
    const made = node("div", {}, node("progress", { max: phase.rounds, value: phase.done, "aria-label": `${phase.name}: ${phase.done} of ${phase.rounds}` }),
      `${phase.name} ${phase.done}/${phase.rounds}: ${phase.groups.map((group) => group.join("+")).join("   ")}`);
    made.style.flexGrow = String(phase.work === "train" ? phase.rounds : 1);
    return made;
  }));
}

function drawSteps() {
  const status = state.status, steps = [];
  const command = (text, words) => steps.push(node("p", {}, text, node("br"), node("code", {}, words)));
  let title = "";
  if (status.state === "finished" || status.state === "failed") {
    title = status.state === "failed" ? "The federation has ended before its time" : "The federation has finished";
    const trained = status.phases.filter((phase) => phase.work === "train").at(-1);
    steps.push(node("p", {}, node("a", { href: "/report/report.html" }, "Report"), " · ", node("a", { href: "/report/report.json", download: "" }, "report.json")));
    if (trained) steps.push(node("p", {}, "Models: ", ...trained.groups.flatMap((group) => {
      const name = [...group].sort().join("+");
      return [node("a", { href: `/report/models/${encodeURIComponent(name)}.safetensors`, download: "" }, name), " "];
    })));
  } else if (status.state === "no bundle") {
    title = "There is no model yet";
    command("Compile one; the server picks it up:", "python -m export compile FILE.py:build --out STATE/bundle");
  } else if (state.devices.size === 0) {
    title = "No board is enrolled yet";
    command("On this machine, for each board:", "python -m broker_server enrol NAME --out agent.toml");
    command("Copy agent.toml to the board, and there:", "python -m edge_runtime run --config agent.toml");
  } else if (status.is_paused) {
    title = "Paused: no round begins";
    steps.push(node("p", {}, session.may_act ? "Resume lets rounds begin again." : "Log in and press Resume, or use the command:"));
    if (!session.may_act) command("", "python -m broker_server resume");
  } else if (status.state === "waiting" && status.online < status.needed) {
    title = `Waiting for boards: ${status.online} of ${status.needed} are online`;
    steps.push(node("p", {}, "The table of the fleet says of each what it waits for."));
  }
  show("steps", title !== "");
  say("steps-title", title);
  put("steps-list", ...steps);
}

// Losses
function drawLosses() {
  const trained = [...state.rounds.values()].filter((round) => round.work === "train");
  const hasVal = trained.some((round) => round.val_loss !== null);
  const tasks = state.status.tasks, lines = [];
  tasks.forEach((task, index) => {
    const points = [];
    for (const round of trained) {
      const loss = (hasVal ? round.val_loss ?? {} : round.train_loss)[task];
      if (loss !== undefined) points.push([round.number, loss]);
    }
    if (points.length) lines.push({ task, colour: COLOURS[index % COLOURS.length], points, first: points[0][1], last: points.at(-1)[1] });
  });
  say("losses-of", hasVal ? "on validation data, relative to each task's start" : "in training, relative to each task's start");
  if (!lines.length) { put("losses-chart", node("p", { class: "mute" }, "No round of training has closed yet.")); return; }
  const numbers = lines.flatMap((line) => line.points.map(([number]) => number));
  const from = Math.min(...numbers), to = Math.max(from + 1, ...numbers);
  const top = Math.max(1, ...lines.flatMap((line) => line.points.map(([, loss]) => loss / line.first)));
  const x = (number) => 40 + (560 * (number - from)) / (to - from), y = (share) => 205 - (185 * share) / top;
  const drawn = [];
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    drawn.push(node("svg:path", { class: "axis", d: `M40 ${y(share * top)}H600` }));
    drawn.push(node("svg:text", { class: "mute", x: 34, y: y(share * top) + 4, "text-anchor": "end" }, (share * top).toFixed(2)));
  }
  drawn.push(node("svg:text", { class: "mute", x: 40, y: 224 }, `round ${from}`), node("svg:text", { class: "mute", x: 600, y: 224, "text-anchor": "end" }, `${to}`));
  const labels = lines.map((line) => ({ line, y: y(line.last / line.first) })).sort((a, b) => a.y - b.y);
  labels.forEach((label, index) => { if (index && label.y - labels[index - 1].y < 14) label.y = labels[index - 1].y + 14; });
  for (const { line, y: at } of labels) {
    const path = line.points.map(([number, loss], index) => `${index ? "L" : "M"}${x(number).toFixed(1)} ${y(loss / line.first).toFixed(1)}`).join("");
    drawn.push(node("svg:path", { d: path, fill: "none", stroke: line.colour, "stroke-width": 2.5 }));
    drawn.push(node("svg:circle", { cx: x(line.points.at(-1)[0]), cy: y(line.last / line.first), r: 3, fill: line.colour }));
    drawn.push(node("svg:path", { d: `M606 ${at}h10`, stroke: line.colour, "stroke-width": 2.5 }));
    drawn.push(node("svg:text", { x: 620, y: at + 4 }, `${line.task} ${line.last.toPrecision(3)}`));
  }
  const words = lines.map((line) => `${line.task} from ${line.first.toPrecision(3)} to ${line.last.toPrecision(3)}`).join(", ");
  put("losses-chart", node("svg:svg", { viewBox: "0 0 780 232", role: "img", "aria-label": `Loss over rounds: ${words}` }, ...drawn));
}

// Split and affinity
function drawSplit() {
  const phases = state.status.phases.filter((phase) => phase.work === "train"), split = state.status.split;
  if (!phases.length) { put("split-tree", node("p", { class: "mute" }, "Nothing is trained yet.")); return; }
  const tree = (index) => {
    const phase = phases[index];
    const items = phase.groups.map((group) => node("li", {}, `${phase.name}: ${group.join(" + ")}`));
    const list = node("ul", { class: "tree" }, ...items);
    if (index + 1 < phases.length) items.at(-1).append(tree(index + 1));
    return list;
  };
  const words = split === null ? "Not decided yet." : `Decided, with a score of ${split.score.toFixed(4)}. Each group goes on from the weights above it.`;
  put("split-tree", node("p", {}, words), tree(0));
}

function drawAffinity() {
  const found = state.affinity;
  if (found === null || !found.counts.some((row) => row.some((count) => count > 0))) {
    put("affinity-table", node("p", { class: "mute" }, "Nothing is measured yet."));
    return;
  }
  const most = Math.max(...found.values.flat().filter((value) => value !== null).map(Math.abs), 1e-12);
  const head = node("tr", {}, node("th", { scope: "col" }, "task"), ...found.tasks.map((task) => node("th", { scope: "col", class: "r" }, task)));
  const rows = found.tasks.map((task, i) => node("tr", {}, node("th", { scope: "row" }, task), ...found.tasks.map((other, j) => {
    const value = found.values[i][j], error = found.errors[i][j];
    if (value === null) return node("td", { class: "self" }, "–");
    const off = error === null ? "" : ` ± ${error.toPrecision(2)}`;
    const cell = node("td", { title: `${task} → ${other}: ${value.toPrecision(3)}${off}, ${found.counts[i][j]} batches` }, `${value < 0 ? "−" : "+"}${Math.abs(value).toPrecision(2)}`);
    cell.style.backgroundColor = `${value < 0 ? "rgba(213,94,0," : "rgba(0,114,178,"}${(0.35 * Math.abs(value)) / most})`;
    return cell;
  })));
  put("affinity-table", node("table", {}, node("thead", {}, head), node("tbody", {}, ...rows)));
}

function drawEnergy() {
  const sums = new Map();
  for (const round of state.rounds.values()) {
    if (round.energy_j === null) continue;
    const sum = sums.get(round.phase) ?? { j: 0, isEstimated: false, isPartial: false };
    sum.j += round.energy_j; sum.isEstimated ||= round.is_estimated; sum.isPartial ||= round.is_partial;
    sums.set(round.phase, sum);
  }
  if (!sums.size) { put("energy-bars", node("p", { class: "mute" }, "No board has reported energy: none has a meter, or no round has closed.")); return; }
  const most = Math.max(...[...sums.values()].map((sum) => sum.j), 1e-9);
  put("energy-bars", ...[...sums].map(([phase, sum]) => node("div", { class: "bar" }, node("span", {}, phase),
    node("progress", { max: most, value: sum.j, "aria-label": `${phase}: ${joules(sum.j, sum.isEstimated, sum.isPartial)}` }),
    node("span", { class: "num" }, joules(sum.j, sum.isEstimated, sum.isPartial)))));
}

// Fleet
const COLUMNS = [
  ["board", "name", (d) => d.name], ["doing", "doing", (d) => d.doing], ["round", "round", (d) => d.round ?? -1],
  ["work", "work_s", (d) => d.work_s ?? -1], ["memory", "peak_bytes", (d) => d.peak_bytes ?? -1], ["°C", "temperature_c", (d) => d.temperature_c ?? -300],
  ["energy", "energy_j", (d) => d.energy_j ?? -1], ["software", "software", (d) => d.software ?? ""], ["why", "problem", (d) => PROBLEMS[d.doing] ?? (d.throttled?.length ? 6 : 9)],
];
const rows = new Map();

function rowOf(device) {
  const kind = ["damaged", "revoked", "rejected", "refused"].includes(device.doing) ? "bad" : ["offline", "new"].includes(device.doing) ? "off" : device.throttled?.length ? "warn" : "ok";
  const doing = device.stage === null ? device.doing : `${device.stage} ${device.done}/${device.total}`;
  const held = device.throttled?.length ? `held back: ${device.throttled.join(", ")}` : "";
  const why = node("td", {}, [device.why, held].filter((text) => text).join("; "));
  if (session.may_act && ["asked", "working", "sending"].includes(device.doing)) {
    const drop = node("button", { type: "button" }, "Drop …");
    drop.setAttribute("aria-label", `Drop ${device.name}`);
    drop.addEventListener("click", () => confirmed(`Drop ${device.name}?`, "The round that is open goes on without it; it is asked again in the next one.", "Drop it", { act: "drop", device: device.name }));
    why.append(" ", drop);
  }
  const budget = device.budget_bytes === null ? "" : ` of ${bytes(device.budget_bytes)}`;
  return node("tr", {}, node("th", { scope: "row", class: `dot ${kind}` }, device.name), node("td", {}, doing),
    node("td", { class: "r" }, device.round === null ? "–" : String(device.round)), node("td", { class: "r" }, device.work_s === null ? "–" : duration(device.work_s)),
    node("td", { class: "r" }, bytes(device.peak_bytes) + budget), node("td", { class: "r" }, device.temperature_c === null ? "–" : device.temperature_c.toFixed(0)),
    node("td", { class: "r" }, joules(device.energy_j, device.is_estimated, false)), node("td", {}, device.software ?? "–"), why);
}

function drawFleet(changed) {
  for (const name of changed ?? state.devices.keys()) {
    const device = state.devices.get(name);
    if (device) rows.set(name, rowOf(device)); else rows.delete(name);
  }
  const wanted = $("filter").value.trim().toLowerCase();
  const by = COLUMNS.find(([, key]) => key === order.key)[2];
  const matches = (d) => !wanted || [d.name, d.doing, d.why, d.software, d.platform, d.tasks.join(" ")].join(" ").toLowerCase().includes(wanted);
  const shown = [...state.devices.values()].filter(matches).sort((a, b) => {
    const one = by(a), two = by(b), sign = order.isDown ? -1 : 1;
    return one < two ? -sign : one > two ? sign : a.name < b.name ? -1 : 1;
  });
  const body = $("fleet-rows"), now = [...body.children], then = shown.map((device) => rows.get(device.name));
  if (now.length !== then.length || now.some((row, index) => row !== then[index])) body.replaceChildren(...then);
  const counts = {};
  for (const device of state.devices.values()) counts[device.doing] = (counts[device.doing] ?? 0) + 1;
  say("fleet-counts", `${state.devices.size} boards: ${Object.entries(counts).map(([doing, count]) => `${count} ${doing}`).join(", ") || "none"}`);
}

function drawHead() {
  put("fleet-head", ...COLUMNS.map(([title, key], index) => {
    const button = node("button", { type: "button" }, title);
    button.addEventListener("click", () => { order.isDown = order.key === key && !order.isDown; order.key = key; drawHead(); drawFleet([]); $("fleet-head").children[index].firstChild.focus(); });
    return node("th", { scope: "col", class: index > 1 && index < 7 ? "r" : null, "aria-sort": order.key === key ? (order.isDown ? "descending" : "ascending") : null }, button);
  }));
}

// Rounds and events
function drawLists() {
  put("rounds-rows", ...[...state.rounds.values()].slice(-100).reverse().map((round) => node("tr", {}, node("td", {}, String(round.number)),
    node("td", {}, `${round.phase} ${round.index + 1}/${round.rounds}`), node("td", {}, round.group), node("td", { class: "r" }, `${round.results}/${round.members}`), node("td", { class: "r" }, duration(round.wall_s)))));
  put("events-list", ...[...state.events.values()].slice(-100).reverse().map((event) => node("li", {}, node("span", { class: "num mute" }, clock(event.at_s)), ` ${event.text}`)));
}

// Acts
function drawActs() {
  const status = state.status, isOver = status === null || status.state === "finished" || status.state === "failed";
  show("pause", session.may_act && !isOver && !status.is_paused);
  show("resume", session.may_act && !isOver && status.is_paused);
  show("stop", session.may_act);
  show("login", !session.may_act);
  show("logout", session.may_act);
}

async function send(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "content-type": "application/json", "x-mas-edge": "page" }, body: JSON.stringify(body) });
  return { isDone: answer.ok, status: answer.status, ...(await answer.json()) };
}
async function act(body) {
  const answer = await send("/api/act", body);
  if (answer.status === 401) { session.may_act = false; drawActs(); }
  problem(answer.isDone ? "" : answer.says);
}
function confirmed(title, text, word, body) {
  say("confirm-title", title); say("confirm-text", text); say("confirm-yes", word);
  $("confirm-yes").onclick = () => { $("confirm-dialog").close(); act(body); };
  $("confirm-dialog").showModal();
}
function problem(text) { say("problem", text); show("problem", text !== ""); }

// Changes
function take(change) {
  if (change.is_all) { state.devices.clear(); state.rounds.clear(); state.events.clear(); rows.clear(); state.affinity = null; }
  const hadStatus = state.status !== null, devices = change.devices ?? [];
  state.status = change.status;
  for (const device of devices) state.devices.set(device.name, device);
  for (const name of change.gone ?? []) state.devices.delete(name);
  for (const round of change.rounds ?? []) state.rounds.set(round.number, round);
  for (const event of change.events ?? []) state.events.set(event.number, event);
  for (const [kept, most] of [[state.rounds, 1000], [state.events, 200]]) while (kept.size > most) kept.delete(kept.keys().next().value);
  if (change.affinity) { state.affinity = change.affinity; drawAffinity(); }
  if (!hadStatus || change.is_all) drawAffinity();
  drawNow(); drawSteps(); drawActs();
  if (change.is_all || devices.length || change.gone) drawFleet(change.is_all ? null : [...devices.map((d) => d.name), ...(change.gone ?? [])]);
  if (change.is_all || change.rounds) { drawLosses(); drawEnergy(); }
  drawSplit();
  if (change.is_all || change.rounds || change.events) drawLists();
  document.body.dataset.state = change.status.state;
}

let source = null;
function watch() {
  if (source) source.close();
  source = new EventSource("/api/changes");
  source.onopen = () => problem("");
  source.onmessage = (event) => take(JSON.parse(event.data));
  source.onerror = () => {
    problem("The server does not answer: it has ended, or the way to it is cut. What is below was true before; this page tries again.");
    document.body.dataset.state = "lost";
    if (source.readyState === EventSource.CLOSED) setTimeout(begin, 3000);
  };
}

async function begin() {
  try {
    Object.assign(session, await (await fetch("/api/session")).json());
  } catch { setTimeout(begin, 3000); return; }
  drawActs();
  if (session.may_read) watch();
  else { say("says", "Log in to see this federation."); document.body.dataset.state = "login"; }
}

$("pause").addEventListener("click", () => confirmed("Pause the federation?", "The round that is open goes on to its end, and no other begins before Resume. It holds over restarts.", "Pause", { act: "pause" }));
$("resume").addEventListener("click", () => act({ act: "resume" }));
$("stop").addEventListener("click", () => confirmed("Stop the server?", "Its state is kept: the same command goes on from there. This page then shows nothing new.", "Stop it", { act: "stop" }));
$("confirm-no").addEventListener("click", () => $("confirm-dialog").close());
$("login").addEventListener("click", () => { $("token").value = ""; say("token-problem", ""); $("token-dialog").showModal(); });
$("token-cancel").addEventListener("click", () => $("token-dialog").close());
$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await send("/api/login", { token: $("token").value });
  if (!answer.isDone) { say("token-problem", answer.says); return; }
  const couldRead = session.may_read;
  Object.assign(session, { may_read: true, may_act: true });
  $("token-dialog").close(); drawActs();
  if (state.status) { drawSteps(); drawFleet(null); }
  if (!couldRead) watch();
});
$("logout").addEventListener("click", async () => { Object.assign(session, await send("/api/logout", {})); if (session.may_read) { drawActs(); drawSteps(); drawFleet(null); } else location.reload(); });
$("filter").addEventListener("input", () => drawFleet([]));
drawHead();
begin();
