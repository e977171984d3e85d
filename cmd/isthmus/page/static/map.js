// The map: networks are land, clusters places on it, gateways ports at its
// shore, and routes lead over the water to the gateway of the network they enter.

import { s, tone, networkName, plural } from "./dom.js";

const PLACE = { w: 168, h: 62, gap: 14 };
const PAD = { x: 26, top: 46, bottom: 26 };
const SHORE = 34; // water around and between land
const LANE = 38; // between routes
const GATE = 8; // radius

// layers collects what lies on each network: clusters are on the network they
// name, else where their endpoints are.
function layers(o) {
  const known = new Map((o.registry.clusters || []).map((c) => [c.id, c]));
  const nets = new Map((o.registry.networks || []).map((n) => [n.id, { id: n.id, gateways: n.gateways || [], places: [], endpoints: n.endpoints, weight: n.weight }]));
  const net = (id) => nets.get(id) || nets.set(id, { id, gateways: [], places: [], endpoints: 0 }).get(id);
  for (const c of o.clusters || []) {
    const seen = known.get(c.id);
    const spread = (o.registry.networks || []).filter((n) => (n.clusters || []).includes(c.id)).map((n) => n.id);
    const on = new Set(spread);
    if (seen && (seen.network || !spread.length)) on.add(seen.network || "");
    if (!seen && !on.size) on.add("");
    for (const id of on) net(id).places.push({ ...c, seen });
  }
  const rank = (n) => (n.id === "" ? 2 : n.places.some((c) => c.primary) ? 0 : 1); // the primary's network first
  return [...nets.values()].sort((a, b) => rank(a) - rank(b) || (a.id < b.id ? -1 : 1));
}

// coast is a closed path that looks like a shore: a rounded rectangle whose
// edges swing a little, always the same for the same name.
function coast(x, y, w, h, name) {
  let seed = 7;
  for (const c of name) seed = (seed * 31 + c.codePointAt(0)) % 9973;
  const swing = (i) => { seed = (seed * 137 + 71 + i) % 9973; return (seed / 9973 - .5) * 2; };
  const r = 30, points = [];
  const edge = (x1, y1, x2, y2, nx, ny) => {
    const steps = Math.max(2, Math.round(Math.hypot(x2 - x1, y2 - y1) / 90));
    for (let i = 0; i <= steps; i++) {
      const t = i / steps, off = i === 0 || i === steps ? 0 : swing(i) * 5;
      points.push([x1 + (x2 - x1) * t + nx * off, y1 + (y2 - y1) * t + ny * off]);
    }
  };
  edge(x + r, y, x + w - r, y, 0, 1);
  edge(x + w, y + r, x + w, y + h - r, 1, 0);
  edge(x + w - r, y + h, x + r, y + h, 0, 1);
  edge(x, y + h - r, x, y + r, 1, 0);
  const n = points.length, f = (v) => v.toFixed(1);
  let d = `M${f(points[0][0])} ${f(points[0][1])}`;
  for (let i = 0; i < n; i++) {
    const [p0, p1, p2, p3] = [points[(i + n - 1) % n], points[i], points[(i + 1) % n], points[(i + 2) % n]];
    d += `C${f(p1[0] + (p2[0] - p0[0]) / 6)} ${f(p1[1] + (p2[1] - p0[1]) / 6)} ${f(p2[0] - (p3[0] - p1[0]) / 6)} ${f(p2[1] - (p3[1] - p1[1]) / 6)} ${f(p2[0])} ${f(p2[1])}`;
  }
  return d + "Z";
}

// measure finds out how large a piece of land has to be.
function measure(net, room) {
  const columns = Math.max(1, Math.min(net.places.length, Math.floor((room - 2 * PAD.x + PLACE.gap) / (PLACE.w + PLACE.gap)), Math.ceil(Math.sqrt(net.places.length))));
  const rows = Math.max(1, Math.ceil(net.places.length / columns));
  return { columns, w: 2 * PAD.x + columns * (PLACE.w + PLACE.gap) - PLACE.gap, h: PAD.top + PAD.bottom + rows * (PLACE.h + PLACE.gap) - PLACE.gap };
}

// arrange places the land. Two networks face each other over one strait: side by
// side if there is room, else one above the other. More stand in rows, with
// their gateways at the lower shore and a sea lane that joins all rows.
function arrange(nets, width) {
  const room = width - 2 * SHORE, pair = nets.length === 2;
  const sized = nets.map((net) => ({ net, down: 0, ...measure(net, pair && width > 620 ? room / 2 - 70 : room) }));
  if (pair && sized[0].w + sized[1].w + 2 * SHORE + 130 <= width) return besides(sized, width);
  if (sized.length <= 2) return stacked(sized, width);
  return inRows(sized, width);
}

function lanesOf(boxes) { return boxes.reduce((n, b) => n + b.net.gateways.length, 0); }

function besides(boxes, width) {
  const shore = Math.max(0, lanesOf(boxes) - 1) * LANE + 90;
  for (const b of boxes) b.h = Math.max(b.h, shore);
  const high = Math.max(...boxes.map((b) => b.h)), strait = width - 2 * SHORE - boxes[0].w - boxes[1].w;
  const wide = Math.min(340, strait);
  boxes[0].x = SHORE + (strait - wide) / 2;
  boxes[1].x = boxes[0].x + boxes[0].w + wide;
  for (const [i, b] of boxes.entries()) { b.y = SHORE + (high - b.h) / 2; b.side = i === 0 ? "right" : "left"; }
  return { boxes, height: high + 2 * SHORE, kind: "strait" };
}

function stacked(boxes, width) {
  const room = width - 2 * SHORE, pair = boxes.length === 2;
  let y = SHORE;
  for (const [i, b] of boxes.entries()) {
    b.w = Math.max(b.w, Math.min(room, lanesOf(boxes) * 112 + 40));
    b.h += b.net.gateways.length ? 24 : 0; // room for the names of the gateways
    b.x = (width - b.w) / 2; b.y = y; b.side = i === 0 ? "bottom" : "top";
    b.down = b.side === "top" && b.net.gateways.length ? 24 : 0;
    y += b.h + (i === 0 && pair ? 110 : SHORE);
  }
  return { boxes, height: y, kind: pair ? "strait" : "alone" };
}

function inRows(boxes, width) {
  const first = SHORE + 24, lanes = [];
  let x = first, y = SHORE, row = [];
  const close = () => {
    const high = Math.max(...row.map((b) => b.h));
    for (const b of row) b.h = high;
    lanes.push(y + high + 40);
    y += high + 74; x = first; row = [];
  };
  for (const b of boxes) {
    b.w = Math.min(width - first - SHORE, Math.max(b.w, b.net.gateways.length * 112 + 30));
    b.h += b.net.gateways.length ? 24 : 0;
    if (row.length && x + b.w > width - SHORE) close();
    b.x = x; b.y = y; b.side = "bottom"; row.push(b);
    x += b.w + SHORE;
  }
  close();
  return { boxes, height: y, kind: "lane", lanes };
}

// berth is the i-th of n places along the shore that faces the water.
function berth(b, i, n) {
  const level = b.side === "left" || b.side === "right";
  const step = level ? LANE : Math.min(112, (b.w - 70) / Math.max(1, n - 1));
  const off = (i - (n - 1) / 2) * step;
  return { right: [b.x + b.w, b.y + b.h / 2 + off], left: [b.x, b.y + b.h / 2 + off], bottom: [b.x + b.w / 2 + off, b.y + b.h], top: [b.x + b.w / 2 + off, b.y] }[b.side];
}

// gates puts a network's gateways at its shore. Over a strait both shores have a
// berth for every route, in the same order, so that routes do not cross: first
// those that lead to the second network, then those to the first.
function gates(plan, b) {
  const own = b.net.gateways, first = plan.boxes[0] === b, strait = plan.kind === "strait";
  const n = strait ? lanesOf(plan.boxes) : own.length, skip = strait && first ? plan.boxes[1].net.gateways.length : 0;
  return own.map((g, i) => {
    const [x, y] = berth(b, skip + i, n);
    return { g, x, y, i: skip + i, n };
  });
}

function gateName(g) { return g.address || g.host; }

function drawGate(p, side) {
  const open = Boolean(p.g.address), level = side === "left" || side === "right";
  const x = { right: p.x + 14, left: p.x - 14 }[side] || p.x, y = { bottom: p.y - 16, top: p.y + 25 }[side] || p.y - 8;
  return s("g", {}, s("title", {}, `${gateName(p.g)}:${p.g.port}${open ? "" : " (not resolved)"}, ${p.g.origin}`),
    s("circle", { class: "gate " + (open ? "" : "bad"), cx: p.x, cy: p.y, r: GATE }),
    s("text", { class: "gate-label " + (level ? "" : "in"), x, y, "text-anchor": { right: "start", left: "end" }[side] || "middle" }, cut(gateName(p.g), level ? 22 : 15)));
}

function drawPlace(c, x, y) {
  const kind = tone(c.health), seen = c.seen;
  const detail = seen ? `${plural(seen.services, "service")}, ${seen.ready}/${seen.endpoints} ready` : c.syncStatus;
  return s("g", {}, s("title", {}, `cluster ${c.id}: ${c.health}, ${c.syncStatus}${c.reason ? ". " + c.reason : ""}`),
    s("rect", { class: "place " + kind, x, y, width: PLACE.w, height: PLACE.h, rx: 12 }),
    s("circle", { class: "dot " + kind, cx: x + 18, cy: y + 22, r: 5.5 }),
    s("text", { class: "name", x: x + 31, y: y + 27 }, cut(c.id, c.primary ? 10 : 16)),
    s("text", { class: "small", x: x + 14, y: y + 48 }, cut(detail, 25)),
    c.primary && s("g", {}, s("rect", { class: "tag", x: x + PLACE.w - 66, y: y + 12, width: 56, height: 19, rx: 9.5 }),
      s("text", { class: "tag-text", x: x + PLACE.w - 38, y: y + 25.5, "text-anchor": "middle" }, "primary")));
}

function cut(text, n) { return text.length > n ? text.slice(0, n - 1) + "…" : text; }

function arrow(x, y, dx, dy) { // its point at x, y, flying in direction dx, dy
  const a = 9, b = 5;
  return s("path", { class: "arrow", d: `M${x} ${y}L${x - dx * a - dy * b} ${y - dy * a + dx * b}L${x - dx * a + dy * b} ${y - dy * a - dx * b}Z` });
}

// straitRoutes lead from one shore to each gateway of the other.
function straitRoutes(plan) {
  const out = [];
  for (const [from, to] of [[plan.boxes[0], plan.boxes[1]], [plan.boxes[1], plan.boxes[0]]]) {
    for (const p of gates(plan, to)) {
      const [x1, y1] = berth(from, p.i, p.n), level = to.side === "left" || to.side === "right";
      const out1 = to.side === "left" || to.side === "top" ? -1 : 1, end = out1 * (GATE + 4); // towards the water, seen from the target
      const [x2, y2] = level ? [p.x + end, p.y] : [p.x, p.y + end];
      const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
      const d = level ? `M${x1} ${y1}C${mx} ${y1} ${mx} ${y2} ${x2} ${y2}` : `M${x1} ${y1}C${x1} ${my} ${x2} ${my} ${x2} ${y2}`;
      out.push(s("path", { class: "route", d }), level ? arrow(x2, y2, -out1, 0) : arrow(x2, y2, 0, -out1));
    }
  }
  return out;
}

// laneRoutes join every gateway to a lane below its row, and the lanes at the left.
function laneRoutes(plan, width) {
  const out = [], x0 = 20;
  for (const y of plan.lanes) out.push(s("path", { class: "route", d: `M${x0} ${y}H${width - 20}` }));
  if (plan.lanes.length > 1) out.push(s("path", { class: "route", d: `M${x0} ${plan.lanes[0]}V${plan.lanes[plan.lanes.length - 1]}` }));
  for (const b of plan.boxes) for (const p of gates(plan, b)) {
    const lane = plan.lanes.find((y) => y > p.y);
    out.push(s("path", { class: "route", d: `M${p.x} ${lane}V${p.y + GATE + 6}` }), arrow(p.x, p.y + GATE + 4, 0, -1));
  }
  return out;
}

// landWeight is what the name of a network that is drained ends with.
function landWeight(n) { return n.weight && n.weight.percent < 100 ? ` · ${n.weight.percent} %` : ""; }

function drawLand(b, alone) {
  const shape = coast(b.x, b.y, b.w, b.h, b.net.id);
  const places = b.net.places.map((c, i) => drawPlace(c, b.x + (b.w - (Math.min(b.columns, b.net.places.length) * (PLACE.w + PLACE.gap) - PLACE.gap)) / 2 + (i % b.columns) * (PLACE.w + PLACE.gap), b.y + b.down + PAD.top + Math.floor(i / b.columns) * (PLACE.h + PLACE.gap)));
  const cutOff = !alone && b.net.id && !b.net.gateways.length;
  return s("g", {}, s("path", { class: "shallows", d: shape }), s("path", { class: "land", d: shape }),
    s("text", { class: "net", x: b.x + PAD.x, y: b.y + b.down + 30 }, cut(networkName(b.net.id) + landWeight(b.net), Math.floor((b.w - 60) / 9))),
    places, !places.length && s("text", { class: "small", x: b.x + PAD.x, y: b.y + 62 }, "no cluster of ours"),
    cutOff && s("text", { class: "warn-text", x: b.x + PAD.x, y: b.y + b.h - 9 }, "no gateway: no way in"));
}

// waves are strewn over the water, away from land, always in the same places.
function waves(plan, width) {
  const out = [];
  for (let y = 26, line = 0; y < plan.height - 10; y += 46, line++) {
    for (let x = 20 + (line % 2) * 64; x < width - 40; x += 128) {
      const ashore = plan.boxes.some((b) => x + 36 > b.x - 22 && x < b.x + b.w + 22 && y > b.y - 26 && y < b.y + b.h + 26);
      const lane = plan.kind === "strait" && plan.boxes.length === 2 && x > Math.min(...plan.boxes.map((b) => b.x)) && x < Math.max(...plan.boxes.map((b) => b.x + b.w));
      if (!ashore && !lane) out.push(s("path", { class: "wave", d: `M${x} ${y}q6-7 12 0t12 0t12 0` }));
    }
  }
  return out;
}

// describe says in words what the map shows.
export function describe(o) {
  return layers(o).map((n) => ({
    name: n.id, clusters: [...new Set(n.places.map((c) => c.id))],
    ways: n.gateways.map((g) => `${gateName(g)}:${g.port}${g.address ? "" : " (not resolved)"}`), known: n.id !== "", endpoints: n.endpoints || 0, weight: landWeight(n),
  }));
}

// draw returns the map as an SVG element of the given width in pixels.
export function draw(o, width) {
  const nets = layers(o), plan = arrange(nets, width);
  const text = describe(o).map((n) => `network ${networkName(n.name)}${n.weight}: clusters ${n.clusters.join(", ") || "none"}, entered through ${n.ways.join(", ") || "nothing"}`).join("; ");
  const routes = plan.kind === "strait" ? straitRoutes(plan) : plan.kind === "lane" ? laneRoutes(plan, width) : [];
  const wide = Math.max(width, ...plan.boxes.map((b) => b.x + b.w + 10));
  return s("svg", { viewBox: `0 0 ${wide} ${plan.height}`, role: "img", "aria-label": "Map of the mesh. " + text }, waves(plan, wide),
    plan.boxes.map((b) => drawLand(b, plan.boxes.length === 1)), routes, plan.boxes.map((b) => gates(plan, b).map((p) => drawGate(p, b.side))));
}
