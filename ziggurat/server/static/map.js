// The memory map: asks /memory once a second and draws what it says.
import { age, bytes, element, fillList, rate } from "./format.js";
import { readMemory } from "./model.js";

const NUM_CELLS = 256;
const NUM_COLOURS = 8;
const HISTORY = 60;
const byId = (id) => document.getElementById(id);

export class MemoryMap {
  constructor() {
    this.history = new Array(HISTORY).fill(0);
    this.last = null;
    this.colours = new Map();
    for (let index = 0; index < NUM_CELLS; index += 1) byId("grid").append(element("i"));
  }

  async refresh() {
    let memory = null;
    try {
      const response = await fetch("/memory", { cache: "no-store" });
      const body = await response.json();
      if (!response.ok) return this.showTrouble(body.error.code, body.error.message);
      memory = readMemory(body);
    } catch {
      return this.showTrouble("offline", "The server does not answer. It may have been stopped.");
    }
    this.draw(memory);
  }

  showTrouble(code, message) {
    const phase = code === "engine_error" ? "failed" : code;
    showPhase(phase, byId("model").textContent);
    byId("notice").textContent = message;
    byId("notice").hidden = false;
    byId("map").classList.toggle("stale", true);
  }

  draw(memory) {
    showPhase(memory.phase, memory.model);
    byId("notice").hidden = memory.phase === "ready";
    if (memory.phase === "draining") byId("notice").textContent = "Shutting down: running requests finish, new ones are refused.";
    byId("map").classList.remove("stale");
    byId("updated").textContent = `up ${age(memory.uptimeS)}`;
    this.paint(memory);
    drawBudget(memory);
    this.drawPool(memory);
    this.drawGauges(memory);
    this.drawRequests(memory);
    drawLedger(memory);
  }

  // A request keeps its colour for as long as it runs.
  paint(memory) {
    const live = new Set(memory.sequences.map((sequence) => sequence.id));
    for (const id of this.colours.keys()) if (!live.has(id)) this.colours.delete(id);
    for (const id of live) {
      if (this.colours.has(id)) continue;
      const taken = [...this.colours.values()];
      const counts = Array.from({ length: NUM_COLOURS }, (_, colour) => taken.filter((other) => other === colour).length);
      this.colours.set(id, counts.indexOf(Math.min(...counts)));
    }
  }

  drawPool({ kv, sequences }) {
    const perCell = kv.total / NUM_CELLS;
    const cells = [];
    for (const sequence of sequences) {
      const share = perCell ? Math.round(sequence.bytes / perCell) : 0;
      const count = sequence.bytes > 0 ? Math.max(1, share) : 0;
      for (let index = 0; index < count; index += 1) cells.push(`c${this.colours.get(sequence.id)}`);
    }
    for (const [name, count] of [["shared", kv.shared], ["prefix", kv.cached]]) {
      const number = count > 0 ? Math.max(1, Math.round(count / perCell)) : 0;
      for (let index = 0; index < number; index += 1) cells.push(name);
    }
    [...byId("grid").children].forEach((cell, index) => {
      cell.className = cells[index] ?? "";
    });
    const shared = kv.shared > 0 ? ` (${bytes(kv.shared)} shared)` : "";
    const words = [`${bytes(kv.used)} in use${shared}`, `${bytes(kv.cached)} reusable`, `${bytes(kv.free)} free`];
    // Lines break between the parts and not inside one.
    byId("pool-text").textContent = words.map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
    const parts = `${bytes(kv.used)} held by requests${shared}, ${bytes(kv.cached)} reusable prefixes, ${bytes(kv.free)} free`;
    byId("grid").setAttribute("aria-label", `KV cache of ${bytes(kv.total)}: ${parts}`);
  }

  drawGauges({ counts, uptimeS }) {
    if (this.last && uptimeS > this.last.uptimeS) {
      const perSecond = (counts.generated - this.last.generated) / (uptimeS - this.last.uptimeS);
      this.history = [...this.history.slice(1), Math.max(0, perSecond)];
    }
    this.last = { generated: counts.generated, uptimeS };
    byId("rate").textContent = rate(this.history[HISTORY - 1]);
    byId("running").textContent = counts.running;
    byId("waiting").textContent = counts.waiting;
    byId("hits").textContent = counts.queried ? `${Math.round((100 * counts.hit) / counts.queried)} %` : "–";
    drawSpark(this.history);
  }

  drawRequests({ sequences }) {
    byId("no-requests").hidden = sequences.length > 0;
    const make = () => {
      const item = element("li");
      item.append(element("span", "dot"), element("span", "id"), element("span", "facts"));
      return item;
    };
    fillList(byId("requests"), sequences.slice(0, 12), make, (item, sequence) => {
      const [dot, id, facts] = item.children;
      dot.className = sequence.isRunning ? `dot c${this.colours.get(sequence.id)}` : "dot waiting";
      id.textContent = sequence.id;
      id.title = sequence.id;
      const place = sequence.isRunning ? `${bytes(sequence.bytes)} own` : "waiting";
      facts.textContent = `${place} · ${sequence.numPrompt} + ${sequence.numOutput} tokens · ${age(sequence.ageS)}`;
    });
  }
}

function showPhase(phase, model) {
  byId("phase").textContent = phase;
  byId("phase").dataset.phase = phase;
  byId("model").textContent = model;
}

function drawBudget({ parts, limitBytes, baselineBytes, usedBytes, processBytes, measure }) {
  const bar = byId("bar");
  if (!bar.children.length) bar.append(element("div", "track"), element("div", "pss"));
  const [track, marker] = bar.children;
  fillList(track, parts, () => element("div"), (node, part) => {
    node.className = `part is-${part.style}`;
    node.style.width = `${(100 * part.bytes) / limitBytes}%`;
    node.title = `${part.title ?? part.label}: ${bytes(part.bytes)}`;
  });
  marker.style.left = `${Math.min(100, (100 * usedBytes) / limitBytes)}%`;
  byId("used").textContent = bytes(usedBytes);
  byId("limit").textContent = `${bytes(limitBytes)} budget`;
  byId("beside").textContent = `measured as ${measure}: process ${bytes(processBytes)}, less its baseline of ${bytes(baselineBytes)}`;
  const isHeld = usedBytes <= limitBytes;
  byId("verdict").textContent = isHeld ? "the budget holds" : `over by ${bytes(usedBytes - limitBytes)}`;
  byId("verdict").className = `verdict ${isHeld ? "good" : "bad"}`;
  const rows = [...parts, { style: "pss", label: "in use, measured", bytes: usedBytes }];
  const make = () => {
    const item = element("li");
    item.append(element("span", "dot"), element("span", "label"), element("span", "bytes"));
    return item;
  };
  fillList(byId("legend"), rows, make, (item, row) => {
    const [dot, label, count] = item.children;
    dot.className = row.style === "pss" ? "dot pss" : `dot is-${row.style}`;
    label.textContent = row.label;
    item.title = row.title ?? "";
    count.textContent = bytes(row.bytes);
  });
  bar.setAttribute("aria-label", rows.map((row) => `${row.label} ${bytes(row.bytes)}`).join(", "));
}

function drawSpark(history) {
  const top = Math.max(1, ...history);
  const points = history.map((value, index) => `${((120 * index) / (HISTORY - 1)).toFixed(1)},${(31 - (28 * value) / top).toFixed(1)}`);
  const spark = byId("spark");
  if (!spark.children.length) {
    for (const name of ["area", "line"]) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      spark.append(path);
    }
  }
  spark.children[0].setAttribute("d", `M0,32 L${points.join(" L")} L120,32 Z`);
  spark.children[1].setAttribute("d", `M${points.join(" L")}`);
}

function drawLedger({ ledger }) {
  const make = () => {
    const row = element("tr");
    const owner = element("td");
    owner.append(element("span", "owner"), element("span", "why"));
    row.append(owner, element("td"), element("td", "number"), element("td", "number"));
    return row;
  };
  fillList(byId("ledger"), ledger, make, (row, lease) => {
    const [owner, kind, size, since] = row.children;
    row.className = lease.depth > 0 ? "inside" : "";
    owner.children[0].textContent = lease.owner;
    owner.children[0].title = lease.owner;
    owner.children[1].textContent = lease.why;
    kind.textContent = lease.kind;
    size.textContent = bytes(lease.bytes);
    since.textContent = lease.ageS === null ? "" : age(lease.ageS);
  });
}
