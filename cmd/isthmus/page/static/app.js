// The page: asks for the overview every two seconds and shows it. What was last
// seen stays when the control plane does not answer: unknown is not empty.

import { h, byId, show, tick, age, empty, setServerTime, span, networkName } from "./dom.js";
import { draw, describe } from "./map.js";
import { drawClusters, drawTiles, drawTrouble } from "./clusters.js";
import { drawServices } from "./services.js";
import { drawProxies } from "./proxies.js";
import { setUpExplain, offer } from "./explain.js";

const every = 2000, patience = 8000;
const state = { overview: null, paused: false, lostSince: 0, why: "", asking: false };

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(patience), cache: "no-store" });
  if (!answer.ok) throw new Error(`${answer.status} ${(await answer.text()).slice(0, 200)}`);
  return answer.json();
}

async function update() {
  if (state.asking) return;
  state.asking = true;
  try {
    state.overview = await ask("overview");
    state.lostSince = 0;
    setServerTime(state.overview.at);
    drawAll();
  } catch (e) {
    state.lostSince ||= Date.now();
    state.why = e.name === "TimeoutError" ? "it does not answer" : e.message;
  }
  state.asking = false;
  drawLost();
}

function drawLost() {
  const line = byId("lost");
  line.hidden = !state.lostSince;
  const text = `No answer from the control plane for ${span((Date.now() - state.lostSince) / 1000)} (${state.why}). ` +
    (state.overview ? "What you see is the last that was known." : "Does isthmus serve still run?");
  if (state.lostSince && line.textContent !== text) line.textContent = text;
}

function drawAll() {
  const o = state.overview;
  if (!o) return;
  show(byId("build"), [o.build, o.pod], () => h("span", {}, `${o.build.version} on ${o.pod}`));
  const ready = byId("ready");
  ready.className = "ready pill " + (o.notReady ? "warn" : "ok");
  const words = o.notReady ? "not ready: " + o.notReady : "ready";
  if (ready.textContent !== words) ready.textContent = words;
  show(byId("updated"), [o.at, state.paused], () => h("span", {}, state.paused ? "stopped, from " : "as of ", age(o.at)));
  drawTiles(o);
  drawTrouble(o);
  drawMap(o);
  drawClusters(o);
  drawServices(o);
  drawProxies(o);
  offer(o);
  document.title = `Isthmus, primary ${o.primary}`;
}

function drawMap(o) {
  const width = Math.max(300, Math.floor(byId("map").clientWidth));
  const from = [width, o.clusters.map((c) => [c.id, c.health, c.syncStatus, c.primary, c.reason]), o.registry.clusters, o.registry.networks];
  show(byId("map"), from, () => o.clusters.length || o.registry.networks.length ? draw(o, width) : empty("No networks yet. They appear with the first cluster."));
  show(byId("map-text"), describe(o), () => describe(o).map((n) => h("article", {},
    h("h3", {}, networkName(n.name)), h("p", {}, n.clusters.length ? "clusters " + n.clusters.join(", ") : "no clusters"),
    n.ways.length ? [h("p", {}, "entered through"), h("ul", {}, n.ways.map((w) => h("li", {}, h("code", {}, w))))]
      : h("p", {}, n.known ? "no gateway: other networks cannot enter" : n.endpoints ? "dialled directly by everyone" : "nothing read yet"))));
}

function setPaused(paused) {
  state.paused = paused;
  const button = byId("pause");
  button.setAttribute("aria-pressed", String(paused));
  button.textContent = paused ? "Go on" : "Pause";
  if (!paused) update(); else drawAll();
}

async function drawRaw() {
  const known = (await ask("list")).map((x) => (typeof x === "string" ? x : x.name)).filter(Boolean).sort();
  show(byId("raw"), known, () => known.map((name) => h("a", { href: name + "?pretty" }, name)));
}

function setUp() {
  byId("pause").addEventListener("click", () => setPaused(!state.paused));
  for (const id of ["filter", "shared"]) byId(id).addEventListener("input", () => state.overview && drawServices(state.overview));
  document.addEventListener("keydown", (e) => {
    if (e.key !== "/" || e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName)) return;
    e.preventDefault();
    byId("filter").focus();
  });
  // Drawing may change the size again: in the next frame, or browsers complain of a loop.
  new ResizeObserver(() => requestAnimationFrame(() => state.overview && drawMap(state.overview))).observe(byId("map"));
  const explainLink = setUpExplain(ask);
  setInterval(() => { if (!state.paused && !document.hidden) update(); }, every);
  setInterval(() => { tick(); drawLost(); }, 1000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !state.paused) update(); });
  update().then(explainLink);
  drawRaw().catch(() => show(byId("raw"), "none", () => h("a", { href: "list" }, "list")));
}

setUp();
