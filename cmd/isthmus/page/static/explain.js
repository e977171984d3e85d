// The form that asks what a proxy would dial for a host, and why.

import { h, byId, show, pill, plural, empty } from "./dom.js";

// What offer knows: the ports of services by host name, and connections by the
// name of the proxy.
let numbers = new Map(), connections = new Map();

// proxyName names a proxy in the whole mesh: pods of several clusters may be
// called the same.
export function proxyName(p) { return `${p.cluster}/${p.id}`; }

// offer suggests proxies, hosts and ports while typing.
export function offer(o) {
  connections = new Map((o.proxies || []).map((p) => [proxyName(p), p.connection]));
  const proxies = [...connections.keys()], services = o.registry.services || [];
  numbers = new Map(services.map((x) => [x.hostname, (x.ports || []).map((p) => /:(\d+)\//.exec(p)?.[1]).filter(Boolean)]));
  show(byId("x-proxies"), proxies, () => proxies.map((value) => h("option", { value })));
  show(byId("x-hosts"), [...numbers.keys()], () => [...numbers.keys()].map((value) => h("option", { value })));
  if (!byId("x-proxy").value && proxies.length) byId("x-proxy").value = proxies[0];
}

function candidate(c) {
  return h("tr", { class: c.kept ? "kept" : "dropped" },
    h("th", { scope: "row" }, h("code", {}, c.address), h("span", { class: "sub" }, c.workload || "no pod")),
    h("td", {}, c.cluster, h("span", { class: "sub" }, [c.network || "network not known", c.locality].filter(Boolean).join(", "))),
    h("td", {}, pill(c.kept ? "ok" : "bad", c.kept ? ((c.gateways || []).length ? "gateway" : "direct") : "not sent", c.verdict),
      c.health !== "Ready" && h("span", { class: "sub" }, c.health)),
    h("td", {}, c.reason));
}

function dialled(a) {
  const bar = h("i", { "aria-hidden": "true" });
  bar.style.width = a.percent + "%";
  return h("tr", {}, h("th", { scope: "row" }, h("code", {}, a.address), a.gateway && h("span", { class: "dim plain" }, " gateway")),
    h("td", {}, a.locality || h("span", { class: "dim" }, "no locality")),
    h("td", { class: "num" }, h("span", { class: "meter wide" }, bar), `${Math.round(a.percent)} %`, h("span", { class: "dim" }, ` weight ${a.weight}`)));
}

function table(heads, rows) {
  return h("table", {}, h("thead", {}, h("tr", {}, heads.map((x) => h("th", { scope: "col" }, x)))), h("tbody", {}, rows));
}

function answer(a) {
  const p = a.proxy, dials = a.dialled || [], candidates = a.candidates || [], kept = candidates.filter((c) => c.kept).length;
  return h("article", { class: "scroll answer", tabindex: "0", role: "region", "aria-label": `${a.host} port ${a.port}` },
    h("h3", {}, `${a.host}:${a.port}`, a.service && h("span", { class: "dim" }, ` ${a.service.protocol}`)),
    h("p", { class: "note" }, `Asked for a ${p.kind} in ${p.cluster || "an unknown cluster"}, network ${p.network || "not known"}. `,
      candidates.length ? `${kept} of ${plural(candidates.length, "candidate")} kept, ${dials.length ? `${plural(dials.length, "address", "addresses")} to dial.` : "nothing to dial."}` : ""),
    (a.notes || []).map((n) => h("p", { class: "note strong" }, n)),
    dials.length > 0 && table(["dials", "locality", "share"], dials.map(dialled)),
    candidates.length > 0 && table(["candidate", "where", "decision", "why"], candidates.map(candidate)));
}

async function explainAll(ask, proxy, host, port) {
  const ports = port ? [port] : numbers.get(host) || [""];
  return Promise.all(ports.map((n) => {
    const query = new URLSearchParams({ proxy: connections.get(proxy) || proxy, host });
    if (n) query.set("port", n);
    return ask("explain?" + query);
  }));
}

export function setUpExplain(ask) {
  const out = byId("answer"), fields = { proxy: "x-proxy", host: "x-host", port: "x-port" };
  const go = async () => {
    const [proxy, host, port] = Object.values(fields).map((id) => byId(id).value.trim());
    history.replaceState(null, "", "?" + new URLSearchParams({ proxy, host, ...(port && { port }) })); // a link to this question
    try {
      const list = await explainAll(ask, proxy, host, port);
      show(out, list, () => list.length ? list.map(answer) : empty("The service has no ports."));
    } catch (e) {
      show(out, e.message, () => h("p", { class: "banner bad" }, e.message));
    }
  };
  const asked = new URLSearchParams(location.search);
  for (const [name, id] of Object.entries(fields)) byId(id).value = asked.get(name) || "";
  byId("explain").addEventListener("submit", (e) => { e.preventDefault(); go(); });
  document.addEventListener("click", (e) => {
    const { host, proxy } = e.target.dataset || {};
    if (!host && !proxy) return;
    if (host) { byId("x-host").value = host; byId("x-port").value = ""; }
    if (proxy) byId("x-proxy").value = proxy;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    byId("explain-s").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
    byId(byId("x-proxy").value ? "x-host" : "x-proxy").focus({ preventScroll: true });
    if (byId("x-proxy").value && byId("x-host").value) go();
  });
  return () => { if (asked.get("proxy") && asked.get("host")) go(); };
}
