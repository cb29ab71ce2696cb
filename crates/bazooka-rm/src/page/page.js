// Draws what the server tells. All text comes in as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);

function put(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") node.className = value;
    else if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const some = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const mib = (bytes) => bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;

function app({ name, owner, head, procs, rollout }) {
  const of = head ? `${head.release} (${head.rev}) by ${head.by}, ${when(head.at)}: ${head.reason}` : `nothing pushed yet; ${owner}'s`;
  const rows = procs.map((proc) =>
    put("tr", {},
      put("td", {}, proc.name),
      put("td", { class: `n ${proc.wanted + proc.running ? proc.verdict : "none"}` }, `${proc.running} of ${proc.wanted}`),
      put("td", { class: "n" }, `:${proc.port}`),
      put("td", { class: "cause" }, proc.cause ?? "")));
  return put("article", { class: "card" },
    put("h3", {}, name),
    rollout ? put("span", { class: "note" }, ` ${rollout}`) : null,
    put("p", { class: "head" }, of),
    put("table", {}, put("tbody", {}, ...rows)));
}

function host(row) {
  const room = row.capacity === null ? "" :
    `${row.used} of ${row.capacity}, ${mib(row.memory_used_bytes)} of ${mib(row.memory_bytes)}`;
  const cells = row.instances.map((it) => {
    const words = `${it.app} ${it.proc} ${it.id} (${it.release}): ${it.state}`;
    return put("i", { class: `cell ${it.state}`, title: words, role: "img", "aria-label": words });
  });
  return put("article", { class: "card" },
    put("span", { class: "right" }, room),
    put("h3", {}, row.name), " ",
    put("span", { class: `state ${row.state}` }, row.state === "up" ? row.isolation : row.state),
    put("div", { class: "cells" }, ...cells, row.more ? `and ${row.more} more` : null));
}

function zone({ name, hosts }) {
  return put("div", {}, put("p", { class: "zone" }, name === null ? "Gone" : `Zone ${name}`), ...hosts.map(host));
}

function when(time) {
  const then = new Date(time);
  const today = then.toDateString() === new Date().toDateString();
  const clock = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
  return today ? clock : `${then.toLocaleDateString([], { month: "short", day: "numeric" })} ${clock}`;
}

function draw(view) {
  const hosts = view.zones.flatMap((zone) => zone.hosts);
  const running = view.apps.flatMap((app) => app.procs).reduce((sum, proc) => sum + proc.running, 0);
  at("sum").textContent = `${some(view.apps.length, "app")}, ${some(running, "instance")} on ${some(hosts.length, "host")}`;
  at("missing").hidden = !view.missing;
  at("missing").textContent = view.missing ?? "";
  const empty = (words) => put("p", { class: "empty" }, words);
  at("apps").replaceChildren(...(view.apps.length ? view.apps.map(app) : [empty("No app yet: bazooka init registers one.")]));
  at("zones").replaceChildren(...(hosts.length ? view.zones.map(zone) : [empty("No host yet: start bazooka-pm on one.")]));
  at("daemons").replaceChildren(...view.daemons.map((row) =>
    put("li", {}, `${row.kind} ${row.name}`, put("span", { class: "state" }, row.note ? ` ${row.note}` : ""))));
  at("events").replaceChildren(...view.events.map((event) =>
    put("li", {}, put("time", { datetime: event.at }, when(event.at)), put("b", {}, event.app), " ",
      put("span", { class: event.mood }, event.text))));
}

function touch(state, words) {
  at("touch").dataset.state = state;
  at("touch").textContent = words;
}

const source = new EventSource("live");
source.onmessage = ({ data }) => {
  const view = JSON.parse(data);
  if (view.out_of_touch) {
    touch("lost", "the coordinator doesn't answer; this is how it was");
    return;
  }
  draw(view);
  touch("live", "live");
};
// The browser tries again by itself, unless it was refused.
source.onerror = () => source.readyState === EventSource.CLOSED
  ? touch("lost", "refused: this takes an identity that is let in")
  : touch("waiting", "connecting …");
