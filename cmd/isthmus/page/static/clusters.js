// Cards of the clusters, the numbers on top, and what needs attention.

import { h, byId, show, tone, pill, plural, span, age, empty, networkName } from "./dom.js";

function dataAge(c) {
  if (c.staleSeconds > 0 && c.syncStatus === "synced") return h("span", {}, `out of date for ${span(c.staleSeconds)}, the last good state is served`);
  if (c.syncStatus !== "synced") return h("span", {}, "nothing read yet");
  return h("span", {}, "up to date");
}

function card(c, seen) {
  const kind = tone(c.health), kinds = (c.kinds || []).filter((k) => k.error);
  const entry = (name, ...value) => [h("dt", {}, name), h("dd", {}, ...value)];
  return h("article", { class: "card " + kind, "aria-label": "cluster " + c.id },
    h("header", {}, h("h3", {}, c.id), c.primary && h("span", { class: "pill" }, "primary"), pill(kind, c.health),
      c.syncStatus !== "synced" && pill("warn", c.syncStatus),
      c.weight && c.weight.percent < 100 && pill("warn", c.weight.percent ? `${c.weight.percent} %` : "drained")),
    h("dl", {},
      seen && entry("holds", `${plural(seen.services, "service")}, ${seen.ready}/${plural(seen.endpoints, "endpoint")} ready`),
      seen && entry("network", networkName(seen.network)),
      c.weight && entry("gets", weightText(c.weight), h("span", { class: "dim" }, " by " + c.weight.from)),
      entry("data", dataAge(c)),
      c.since && entry("state since", age(c.since)),
      c.lastEvent && entry("last event", age(c.lastEvent)),
      c.secretName && entry("from", h("code", {}, c.secretName + (c.key && c.key !== c.id ? " key " + c.key : ""))),
      c.server && c.server !== c.secretName && entry("server", h("code", {}, c.server))),
    c.reason && h("p", { class: "why" }, c.reason),
    kinds.map((k) => h("p", { class: "why" }, `${k.kind}: ${k.error}`)));
}

// weightText says how much of its share a cluster or network gets.
export function weightText(w) {
  return w.percent === 0 ? "drained: nothing new is sent there" : w.percent === 100 ? "all of its share" : `${w.percent} % of its share`;
}

export function drawClusters(o) {
  const seen = new Map((o.registry.clusters || []).map((c) => [c.id, c]));
  const calm = (o.clusters || []).map((c) => ({ ...c, staleSeconds: Math.round(c.staleSeconds || 0) }));
  show(byId("clusters"), [calm, [...seen]], () => calm.length ? calm.map((c) => card(c, seen.get(c.id)))
    : empty("No cluster yet. Join one: isthmus create-remote-secret --name NAME | kubectl apply -f -"));
}

function one(name) { return name === "proxies" ? "proxy" : name.replace(/s$/, ""); }

export function drawTiles(o) {
  const r = o.registry, sum = (list, f) => (list || []).reduce((n, x) => n + f(x), 0);
  const unwell = (o.clusters || []).filter((c) => c.health !== "ok").length;
  const ready = sum(r.clusters, (c) => c.ready), all = sum(r.clusters, (c) => c.endpoints);
  const trouble = (o.refused || []).length + (r.problems || []).length + (r.conflicts || []).length;
  const tiles = [
    ["clusters-s", (o.clusters || []).length, unwell ? `clusters, ${unwell} not well` : "clusters", unwell ? "bad" : ""],
    ["map", (r.networks || []).filter((n) => n.id).length, "networks", ""],
    ["services-s", (r.services || []).length, "services", ""],
    ["services-s", ready === all ? all : `${ready}/${all}`, ready === all ? "endpoints" : "endpoints ready", ready === all ? "" : "warn"],
    ["proxies-s", (o.proxies || []).length, "proxies", ""],
    [trouble ? "trouble" : "main", trouble, "to look at", trouble ? "warn" : ""],
  ];
  show(byId("tiles"), tiles, () => tiles.map(([to, n, name, kind]) => h("a", { class: "tile " + kind, href: "#" + to }, h("b", {}, n), h("span", {}, n === 1 ? one(name) : name))));
}

function objectName(x) { return `${x.kind} ${x.namespace ? x.namespace + "/" : ""}${x.name}`; }

// drawTrouble lists kubeconfigs that are not used, objects that are not served as
// written, and disagreements.
export function drawTrouble(o) {
  const refused = o.refused || [], problems = o.registry.problems || [], conflicts = o.registry.conflicts || [];
  byId("trouble").hidden = !refused.length && !problems.length && !conflicts.length;
  show(byId("trouble-list"), [refused, problems, conflicts], () => h("div", { class: "list" },
    refused.map((x) => h("article", { class: "issue bad-edge" },
      h("h3", {}, "Kubeconfig refused: ", h("code", {}, x.secretName + (x.key && x.key !== x.id ? " key " + x.key : "")),
        x.id && h("span", { class: "dim" }, " for cluster " + x.id)),
      h("p", {}, h("code", {}, x.reason), ": ", x.message))),
    problems.map((p) => h("article", { class: "issue bad-edge" },
      h("h3", {}, objectName(p.object), h("span", { class: "dim" }, " in cluster " + p.object.cluster)),
      h("p", {}, p.field && [h("code", {}, p.field), ": "], p.message, " ", h("span", { class: "dim" }, "Since ", age(p.since, "."))))),
    conflicts.map((c) => h("article", { class: "issue" },
      h("h3", {}, `Clusters disagree about ${c.service.Hostname || c.service.hostname}`),
      h("p", {}, h("code", {}, c.field), `: ${c.detail} `, h("span", { class: "dim" }, `${c.winner} counts, ${c.loser} does not.`))))));
}
