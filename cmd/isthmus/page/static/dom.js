// Building blocks: elements, ages, words. Data becomes text nodes and attributes
// only; nothing here or elsewhere parses data as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

// h makes an HTML element, s an SVG element.
export function h(tag, attributes, ...children) { return fill(document.createElement(tag), attributes, children); }
export function s(tag, attributes, ...children) { return fill(document.createElementNS(SVG, tag), attributes, children); }

export function byId(id) { return document.getElementById(id); }

// show replaces what is in a node, but only if what it is made from has changed,
// so that focus, selection and scrolling survive an update.
const shown = new WeakMap();
export function show(node, from, make) {
  const key = JSON.stringify(from);
  if (shown.get(node) === key) return;
  shown.set(node, key);
  node.replaceChildren(...[make()].flat(Infinity).filter(Boolean));
}

// Clocks: what the server says counts, since a browser's clock may be off.
let ahead = 0;
export function setServerTime(at) { ahead = new Date(at).getTime() - Date.now(); }
function now() { return Date.now() + ahead; }

// span renders seconds as people say them.
export function span(seconds) {
  const n = Math.max(0, Math.round(seconds));
  if (n < 60) return n + " s";
  if (n < 3600) return Math.floor(n / 60) + " min";
  if (n < 86400) return Math.floor(n / 3600) + " h " + Math.floor((n % 3600) / 60) + " min";
  return Math.floor(n / 86400) + " days";
}

// age is a <time> that keeps itself up to date (see tick).
export function age(at, suffix = " ago") {
  const t = new Date(at);
  if (!at || Number.isNaN(t.getTime()) || t.getUTCFullYear() < 1971) return h("span", { class: "dim" }, "never");
  const node = h("time", { datetime: t.toISOString(), title: t.toLocaleString(), "data-suffix": suffix });
  refresh(node);
  return node;
}
function refresh(node) {
  const text = span((now() - new Date(node.dateTime).getTime()) / 1000) + node.dataset.suffix;
  if (node.textContent !== text) node.textContent = text;
}
export function tick() { for (const node of document.querySelectorAll("time[data-suffix]")) refresh(node); }

export function plural(n, one, many = one + "s") { return n + " " + (n === 1 ? one : many); }

// tone maps a cluster's health to a colour; words always say it too.
export function tone(health) {
  return { ok: "ok", starting: "idle", degraded: "warn", unreachable: "bad", refused: "bad" }[health] || "idle";
}
export function sign(kind) { return { ok: "✓", warn: "!", bad: "✕" }[kind] || "…"; }
export function pill(kind, text, title) { return h("span", { class: "pill " + kind, title }, h("span", { "aria-hidden": "true" }, sign(kind)), text); }
export function empty(...text) { return h("p", { class: "empty" }, ...text); }
export function networkName(id) { return id || "network not known"; }
