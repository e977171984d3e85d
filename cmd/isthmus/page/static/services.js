// The table of services: one column per cluster.

import { h, byId, show, plural, empty, pill } from "./dom.js";

// words are what a service is found by.
function words(service) {
  return [service.hostname, service.namespace, ...(service.ports || []), ...(service.clusters || []).map((c) => c.id)].join(" ").toLowerCase();
}

function port(text) { // "name:80/HTTP" -> "80 HTTP"
  const m = /^(.*):(\d+)\/(.*)$/.exec(text);
  return m ? h("span", { title: "port " + (m[1] || "without a name") }, `${m[2]} ${m[3]}`) : text;
}

function cell(count) {
  if (!count) return h("td", { class: "count none", title: "not in this cluster" }, "–");
  if (!count.endpoints) return h("td", { class: "count" }, h("span", { class: "dim", title: "defined here, without endpoints" }, "0"));
  const part = h("i", { "aria-hidden": "true" });
  part.style.width = (100 * count.ready) / count.endpoints + "%";
  return h("td", { class: "count", title: `${count.ready} of ${plural(count.endpoints, "endpoint")} ready` }, h("span", { class: "meter" }, part), `${count.ready}/${count.endpoints}`);
}

function row(service, clusters, domain) {
  const name = service.hostname.split(".")[0], inside = service.hostname === `${name}.${service.namespace}.svc.${domain}`;
  const by = new Map((service.clusters || []).map((c) => [c.id, c]));
  const ports = (service.ports || []).flatMap((p, i) => [i ? ", " : "", port(p)]);
  return h("tr", {}, h("th", { scope: "row" }, inside ? `${name}.${service.namespace}` : service.hostname,
    service.conflicts > 0 && [" ", pill("warn", plural(service.conflicts, "conflict"), "clusters disagree about this service")], h("span", { class: "sub" }, ports)),
  clusters.map((c) => cell(by.get(c.id))),
  h("td", { class: "count" }, h("button", { class: "link", type: "button", "data-host": service.hostname, "aria-label": "Explain " + service.hostname }, "explain")));
}

// most bounds the rows that are drawn; the filter finds the rest.
const most = 300;

// drawServices shows the services that the filter lets pass.
export function drawServices(o) {
  const wanted = byId("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean), shared = byId("shared").checked;
  const all = o.registry.services || [], clusters = o.clusters || [];
  const list = all.filter((x) => (!shared || (x.clusters || []).length > 1) && (!wanted.length || wanted.every((w) => words(x).includes(w))));
  show(byId("services"), [list, clusters.map((c) => c.id), all.length], () => {
    if (!all.length) return empty("No services yet. A Service in any cluster appears here as soon as it is read.");
    if (!list.length) return empty(`None of the ${plural(all.length, "service")} matches.`);
    const domain = commonDomain(all);
    return [h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "service"), clusters.map((c) => h("th", { scope: "col", class: "count" }, c.id)), h("th", {}, h("span", { class: "hidden-text" }, "explain")))),
      h("tbody", {}, list.slice(0, most).map((x) => row(x, clusters, domain)))),
    list.length > most && empty(`${list.length - most} more: narrow the filter to see them.`)];
  });
}

// commonDomain is the cluster domain that host names end in most often.
function commonDomain(services) {
  const seen = new Map();
  for (const x of services) {
    const m = /^[^.]+\.[^.]+\.svc\.(.+)$/.exec(x.hostname);
    if (m) seen.set(m[1], (seen.get(m[1]) || 0) + 1);
  }
  return [...seen].sort((a, b) => b[1] - a[1]).map((x) => x[0])[0] || "cluster.local";
}
