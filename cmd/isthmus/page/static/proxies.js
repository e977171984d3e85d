// Connected proxies and how far each has taken what it was sent.

import { h, byId, show, age, empty } from "./dom.js";
import { proxyName } from "./explain.js";

const order = ["CDS", "EDS", "LDS", "RDS", "SDS", "NDS", "ECDS", "PCDS"];

// Tones and words of istiod's states of one type of one proxy.
const states = {
  SYNCED: ["ok", "took the newest"], STALE: ["warn", "has not answered the newest yet"],
  ERROR: ["bad", "rejected the newest"], NOT_SENT: ["idle", "asked, nothing sent yet"],
};

function state(t) {
  const [kind, words] = states[t.status] || ["idle", t.status];
  return h("span", { class: "pill " + kind, title: `${t.name}: ${words}, ${t.resources} resources${t.error ? ": " + t.error : ""}` },
    h("span", { "aria-hidden": "true" }, { ok: "✓", warn: "…", bad: "✕" }[kind] || "–"), t.name, h("span", { class: "hidden-text" }, " " + words));
}

function types(p) { return [...(p.types || [])].sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name)); }

function row(p) {
  const refused = types(p).filter((t) => t.error);
  return h("tr", {}, h("th", { scope: "row" }, p.id, h("span", { class: "sub" }, [p.kind, p.dialect, p.version, p.protocol].filter(Boolean).join(", "))),
    h("td", {}, p.cluster, h("span", { class: "sub" }, p.network || "network not known")),
    h("td", {}, h("span", { class: "states" }, types(p).map(state)),
      refused.map((t) => h("span", { class: "sub" }, h("span", { class: "pill bad" }, t.name), " ", (t.rejected || []).length ? h("code", {}, t.rejected.join(", ") + " ") : "", t.error))),
    h("td", {}, age(p.connectedAt, "")),
    h("td", { class: "count" }, h("button", { class: "link", type: "button", "data-proxy": proxyName(p), "aria-label": "Explain from " + proxyName(p) }, "explain")));
}

export function drawProxies(o) {
  const list = o.proxies || [];
  show(byId("proxies"), list, () => list.length
    ? h("table", {}, h("thead", {}, h("tr", {}, ["proxy", "where", "what it has taken", "connected for"].map((x) => h("th", { scope: "col" }, x)), h("th", {}, h("span", { class: "hidden-text" }, "explain")))), h("tbody", {}, list.map(row)))
    : empty("No proxy is connected. One appears here with its first request on the ADS port."));
}
