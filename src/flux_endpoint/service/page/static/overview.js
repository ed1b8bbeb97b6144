// What runs, what waits, what failed; and each endpoint.

import { get } from "./api.js";
import { age, bytes, duration, h, moment, now, number, problems, show, synchronize } from "./dom.js";
import { taskTable } from "./tasks.js";

const LATEST = 10;

const count = (value) => (typeof value === "number" ? value : 0);

/** Return what an endpoint's last report says, as far as it is online. */
function load(endpoint) {
  const report = endpoint.status === "online" ? endpoint.report : {};
  const jobs = count(report.jobs), queued = count(report.waiting_jobs);
  const busy = Math.max(count(report.total_workers) - count(report.idle_workers), 0);
  return {
    report, jobs: Math.max(jobs - queued, 0), queued, busy,
    workers: count(report.total_workers), starting: count(report.starting_workers),
    waiting: count(report.pending_tasks) + queued, inQueue: count(endpoint.queue?.messages),
    rate: count(report.agent?.finished_rates?.["1m"]),
  };
}

function tile(name, value, text, { href, kind = "" } = {}) {
  const inside = [h("span", { class: "label" }, name), h("strong", {}, value), h("span", { class: "more" }, text)];
  return href ? h("a", { class: `tile card ${kind}`, href }, inside) : h("div", { class: `tile card ${kind}` }, inside);
}

function tiles(data) {
  const loads = data.endpoints.filter((each) => each.mine || each.status === "online").map(load);
  const sum = (field) => loads.reduce((total, each) => total + each[field], 0);
  const running = sum("busy") + sum("jobs");
  const failed = data.recent.failed, of = data.recent_of;
  const online = data.endpoints.filter((each) => each.status === "online").length;
  return [
    { key: "running", make: () => tile("Running", number(running), running ? `${number(sum("busy"))} of ${number(sum("workers"))} workers, ${number(sum("jobs"))} ${sum("jobs") === 1 ? "job" : "jobs"}` : `${number(sum("workers"))} workers, all idle`, { kind: "running", href: "#/tasks?state=running" }), data: [running, sum("workers"), sum("jobs")] },
    { key: "waiting", make: () => tile("Unfinished", number(data.unfinished), sum("waiting") || sum("inQueue") ? `${number(sum("waiting"))} wait at endpoints, ${number(sum("inQueue"))} in queues` : data.unfinished ? "nothing waits" : "of your tasks", { kind: "waiting", href: "#/tasks?state=open" }), data: [data.unfinished, sum("waiting"), sum("inQueue")] },
    { key: "failed", make: () => tile("Failed", number(failed), of ? `of your newest ${number(of)} tasks` : "no tasks yet", { kind: failed ? "failed" : "", href: "#/tasks?state=failed" }), data: [failed, of] },
    { key: "rate", make: () => tile("Finished per second", number(sum("rate")), "over the last minute"), data: sum("rate") },
    { key: "online", make: () => tile("Endpoints online", `${online}`, `of ${data.endpoints.length + data.more_endpoints}`, { kind: online ? "" : "failed" }), data: [online, data.endpoints.length] },
  ];
}

/** Return a bar of parts, with its numbers as text. */
function bar(label, parts, whole, text) {
  return h("div", { class: "meter" },
    h("div", { class: "meter-text" }, h("span", {}, label), h("span", {}, text)),
    h("div", { class: "bar", "aria-hidden": "true" },
      parts.filter(([, value]) => value > 0).map(([kind, value]) =>
        h("span", { class: `part ${kind}`, style: { width: `${Math.min((100 * value) / Math.max(whole, 1), 100)}%` } }))));
}

function meters(endpoint) {
  const { report, busy, workers, starting, jobs, queued, waiting } = load(endpoint);
  const most = Math.max(count(report.max_workers), workers + starting);
  const found = [];
  const idle = workers - busy;
  found.push(bar("Workers", [["busy", busy], ["idle", idle], ["starting", starting]], most || 1,
    workers || starting ? `${number(busy)} busy, ${number(idle)} idle${starting ? `, ${number(starting)} starting` : ""}` : "none now, they start as tasks come"));
  const usage = report.usage || {};
  for (const [kind, name] of [["cores", "Cores"], ["gpus", "GPUs"]]) {
    const used = count(usage[`${kind}_allocated`]), all = used + count(usage[`${kind}_free`]);
    if (all) found.push(bar(name, [["busy", used]], all, `${number(used)} of ${number(all)} allocated`));
  }
  if (jobs || queued) found.push(bar("Jobs", [["busy", jobs], ["waiting", queued]], jobs + queued, `${number(jobs)} running, ${number(queued)} waiting`));
  if (waiting - queued > 0) found.push(h("div", { class: "meter-text" }, h("span", {}, "Waiting for a worker"), h("strong", { class: "waits" }, number(waiting - queued))));
  return found;
}

function facts(endpoint) {
  const { report, rate } = load(endpoint), usage = report.usage || {};
  const nodes = report.resources?.nodes;
  const rows = [["Queue", endpoint.queue ? `${number(endpoint.queue.messages)} messages` : "unknown"]];
  if (endpoint.status === "online") {
    rows.push(["Rate", `${number(rate)} tasks/s`]);
    rows.push(["Finished", number(report.agent?.finished)]);
    if (nodes) rows.push(["Nodes", `${number(nodes)}${usage.nodes_down ? `, ${number(usage.nodes_down)} down` : ""}${report.worker_nodes ? `, ${number(report.worker_nodes)} with workers` : ""}`]);
    if (Array.isArray(report.blocks)) rows.push(["Blocks", report.blocks.length ? blocks(report.blocks) : "none now"]);
    if (usage.expires) rows.push(["Ends", usage.expires > now() ? `in ${duration(usage.expires - now())}` : "now"]);
    if (endpoint.since) rows.push(["Online since", moment(endpoint.since)]);
  }
  return h("dl", { class: "facts" }, rows.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
}

function blocks(list) {
  const counts = {};
  for (const each of list) { const state = String(each?.state); counts[state] = (counts[state] || 0) + 1; }
  return Object.entries(counts).map(([state, many]) => `${many} ${state}`).join(", ");
}

function absence(endpoint) {
  const texts = { "never started": "It was never started.", stopped: "It was stopped.", silent: "Its reports do not come: it was killed, or is cut off." };
  return h("p", { class: "more" }, texts[endpoint.absence] || "It is offline.", " ", endpoint.last_seen ? ["Last report ", age(endpoint.last_seen), "."] : "");
}

function card(endpoint) {
  const online = endpoint.status === "online", { report } = load(endpoint);
  const name = endpoint.display_name || endpoint.name;
  return h("article", { class: `card endpoint ${online ? "online" : "offline"}`, "aria-label": `Endpoint ${name}` },
    h("header", {},
      h("h3", {}, h("span", { class: `dot ${online ? "on" : "off"}`, "aria-hidden": "true" }), name),
      h("span", { class: online ? "state on" : "state off" }, online ? "online" : "offline")),
    h("p", { class: "more" }, online ? report.executor_description || report.engine_type || "unknown executor" : null,
      endpoint.mine ? null : ` · of ${endpoint.owner}`),
    online ? null : absence(endpoint),
    report.trouble ? h("p", { class: "problem" }, report.trouble) : null,
    report.workers_error && !count(report.total_workers) ? h("p", { class: "problem" }, `No worker starts: ${report.workers_error}`) : null,
    report.ending ? h("p", { class: "problem" }, "Its Flux instance is ending or gone: it starts nothing more.") : null,
    report.agent?.paused ? h("p", { class: "note" }, "It has as many tasks as it takes; more wait in the queue.") : null,
    online ? h("div", { class: "meters" }, meters(endpoint)) : null,
    facts(endpoint),
    h("footer", {},
      online && endpoint.last_seen ? h("span", { class: "more" }, "as of ", age(endpoint.last_seen)) : h("span"),
      h("span", { class: "links" },
        h("a", { href: `#/tasks?endpoint=${endpoint.endpoint_id}`, "aria-label": `Tasks of ${name}` }, "tasks"),
        h("a", { href: `#/run?endpoint=${endpoint.endpoint_id}`, "aria-label": `Run of ${name}` }, "run"))));
}

function service(data) {
  const { database, broker, queues } = data, letters = queues["dead-letters"]?.messages;
  const parts = [
    `release ${data.version}`,
    database ? `${database.kind}${database.free_bytes === null || database.free_bytes === undefined ? "" : `, ${bytes(database.free_bytes)} free`}` : "no database",
    broker.connected ? `${broker.server}${broker.alarm ? ", takes no messages" : ""}` : "RabbitMQ is away",
    queues.results ? `${number(queues.results.messages)} results on their way` : null,
    letters ? `${number(letters)} dead letters` : null,
  ];
  return parts.filter(Boolean).join(" · ");
}

export const overview = {
  title: "Overview",
  open(container) {
    const head = h("section", { class: "tiles", "aria-label": "At a glance" });
    const cards = h("div", { class: "cards" });
    const more = h("p", { class: "more" });
    const table = (id, name, href) => {
      const made = taskTable(name);
      made.box = h("section", { "aria-labelledby": id }, h("h2", { id }, name, h("a", { class: "aside", href }, "all")), made.element);
      made.box.hidden = true;
      return made;
    };
    const running = table("running", "Running", "#/tasks?state=running"), failures = table("failures", "Latest failures", "#/tasks?state=failed"), latest = table("latest", "Newest tasks", "#/tasks");
    const about = h("p", { class: "more service" });
    container.append(
      h("h1", { class: "hidden" }, "Overview"), head,
      h("section", { "aria-labelledby": "endpoints" }, h("h2", { id: "endpoints" }, "Endpoints"), cards, more),
      running.box, failures.box, latest.box, about);
    return async () => {
      const [data, newest] = await Promise.all([get("overview"), get("tasks", { limit: LATEST })]);
      synchronize(data.time);
      problems(data.problems);
      show(head, tiles(data), (each) => each.key, (each) => each.make());
      show(cards, data.endpoints, (each) => each.endpoint_id, card);
      cards.classList.toggle("none", !data.endpoints.length);
      more.textContent = data.endpoints.length
        ? (data.more_endpoints ? `${number(data.more_endpoints)} more are not shown.` : "")
        : "No endpoints yet: flux-endpoint configure NAME creates one, flux-endpoint start NAME starts it.";
      about.textContent = service(data);
      const fill = (box, list) => { box.show(list, data.endpoints); box.box.hidden = !list.length; };
      fill(latest, newest.tasks);
      latest.box.hidden = false;
      fill(running, data.unfinished ? (await get("tasks", { state: "running", limit: LATEST })).tasks : []);
      fill(failures, data.recent.failed ? (await get("tasks", { state: "failed", limit: 5 })).tasks : []);
    };
  },
};

