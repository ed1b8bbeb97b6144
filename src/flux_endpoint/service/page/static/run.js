// A run: which worker or job had which task when, and how busy each node was.

import { get } from "./api.js";
import { duration, h, moment, now, number, s, stateName } from "./dom.js";

const MOST = 1000, MOST_LANES = 128, COLOURS = 8;
const SPANS = [["", "automatic"], ["60", "1 min"], ["600", "10 min"], ["3600", "1 h"], ["all", "all of them"]];
/** Seconds that are shown of an endpoint; of a group, all are. */
const FITS = 600;
const WIDTH = 1000;

/** Give each task a lane: its worker's; of a job, or where the worker is unknown, the first that is free. */
function lanes(runs) {
  const workers = new Map(), free = new Map();
  const isWorker = (run) => run.lane && !run.lane.startsWith("ƒ");
  for (const run of runs.filter(isWorker)) {
    const key = `${run.node} ${run.lane}`;
    const lane = workers.get(key) || workers.set(key, { node: run.node || "", name: run.lane, tasks: [], until: 0 }).get(key);
    lane.tasks.push(run);
    lane.until = Math.max(lane.until, run.end);
  }
  for (const run of runs.filter((each) => !isWorker(each))) {
    const node = run.node || "", ours = free.get(node) || free.set(node, []).get(node);
    // Which worker runs a task is known when it has ended: until then, one that has just become free.
    const idle = run.state === "running" && !run.lane ? [...workers.values()].filter((each) => each.until <= run.started + 0.05).sort((one, other) => other.until - one.until) : [];
    let lane = idle[0] || ours.find((each) => each.until <= run.started);
    if (!lane) { lane = { node, name: `${ours.length + 1}`, tasks: [], until: 0 }; ours.push(lane); }
    lane.until = run.end;
    lane.tasks.push(run);
  }
  const found = [...pack([...workers.values()]), ...[...free.values()].flat()];
  return found.sort((one, other) => one.node.localeCompare(other.node, "en", { numeric: true }) || one.name.localeCompare(other.name, "en", { numeric: true }));
}

/** Put workers of a node that came one after the other into one lane, as they had the same cores. */
function pack(workers) {
  const found = [];
  for (const each of workers.sort((one, other) => one.tasks[0].started - other.tasks[0].started)) {
    const end = Math.max(...each.tasks.map((run) => run.end));
    const lane = found.find((other) => other.node === each.node && other.until <= each.tasks[0].started);
    if (!lane) found.push({ node: each.node, name: `${found.length + 1}`, tasks: each.tasks, until: end });
    else { lane.tasks.push(...each.tasks); lane.until = end; }
  }
  return found;
}

/** Return round moments between two, about `count` of them. */
function ticks(from, to, count) {
  const steps = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 86400, 7 * 86400];
  const step = steps.find((each) => (to - from) / each <= count) || steps.at(-1);
  const found = [];
  for (let at = step; at < to - from && found.length < 50; at += step) found.push(at);
  return found;
}

function axis(from, to, height) {
  const span = to - from;
  return ticks(from, to, 8).map((at) => s("g", { class: "tick" }, s("line", { x1: (WIDTH * at) / span, x2: (WIDTH * at) / span, y1: 0, y2: height })));
}

function axisText(from, to) {
  const span = to - from;
  return h("div", { class: "axis", "aria-hidden": "true" }, ticks(from, to, 8).map((at) => h("span", { style: { left: `${(100 * at) / span}%` } }, duration(at))));
}

function stream(found, from, to, colourOf) {
  const height = Math.max(8, Math.min(26, Math.floor(360 / found.length))), span = to - from;
  const x = (at) => (WIDTH * (Math.max(at, from) - from)) / span;
  return s("svg", { class: "stream", viewBox: `0 0 ${WIDTH} ${Math.max(found.length, 1) * height}`, preserveAspectRatio: "none", role: "img", "aria-labelledby": "run-said",
    style: { height: `${Math.max(found.length, 1) * height}px` } },
    axis(from, to, found.length * height),
    found.map((lane, index) => s("g", { "data-node": lane.node }, lane.tasks.filter((run) => run.end >= from && run.started <= to).map((run) =>
      s("a", { href: `#/task/${run.id}`, tabindex: "-1" },
        s("rect", { class: `run colour${colourOf(run)} ${run.state}`, x: x(run.started), width: Math.max(x(Math.min(run.end, to)) - x(run.started), 1.2), y: index * height + 1, height: height - 2 },
          s("title", {}, `${run.function || run.lane || "task"}, ${stateName(run.state)}\n${duration(run.end - run.started)}, from ${moment(run.started)}\n${[run.node, run.lane].filter(Boolean).join(" ")}`)))))));
}

/** Return how many lanes are busy over time, as points of a step curve, and the mean. */
function busy(tasks, from, to) {
  const changes = tasks.flatMap((run) => [[Math.max(run.started, from), 1], [Math.min(run.end, to), -1]]).filter(([at]) => at >= from && at <= to).sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  const points = [[from, 0]];
  let level = 0, area = 0, last = from, most = 0;
  for (const [at, change] of changes) {
    area += level * (at - last);
    points.push([at, level], [at, level + change]);
    level += change; last = at; most = Math.max(most, level);
  }
  points.push([to, level]);
  return { points, mean: area / Math.max(to - from, 1e-9), most, level };
}

function utilization(found, from, to) {
  const nodes = new Map(), known = [...new Set(found.map((each) => each.node).filter(Boolean))];
  for (const lane of found) {
    const name = lane.node || (known.length === 1 ? known[0] : "");
    const node = nodes.get(name) || nodes.set(name, { name, tasks: [] }).get(name);
    node.tasks.push(...lane.tasks);
  }
  const many = nodes.size > 1 || [...nodes.keys()].some(Boolean);
  return [...nodes.values()].slice(0, 64).map((node) => {
    // Workers come and go: the most that were busy at a time are what the node had.
    const curve = busy(node.tasks, from, to), most = Math.max(curve.most, 1), height = 30, span = to - from;
    const path = curve.points.map(([at, level], index) => `${index ? "L" : "M"}${((WIDTH * (at - from)) / span).toFixed(1)} ${(height - ((height - 2) * level) / most).toFixed(1)}`).join("");
    const running = node.tasks.filter((each) => each.state === "running").length;
    const share = Math.round((100 * curve.mean) / most);
    return h("li", { class: "node" },
      h("div", { class: "meter-text" }, h("span", {}, many ? node.name || "node not known yet" : "all"), h("span", {}, `${share} % busy · ${curve.mean.toFixed(1)} of ${number(most)} on average${running ? ` · ${number(running)} now` : ""}`)),
      s("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, s("path", { d: `${path}L${WIDTH} ${height}L0 ${height}Z` })));
  });
}

export const run = {
  title: "Run",
  open(container, { query, setQuery, refresh }) {
    const wanted = { endpoint: query.get("endpoint") || "", group: query.get("group") || "", span: query.get("span") || "" };
    const apply = (changed) => { Object.assign(wanted, changed); setQuery(wanted); refresh(); };
    const where = h("select", { id: "run-where", onchange: () => apply({ endpoint: where.value }) }, h("option", { value: "" }, "all"));
    const group = h("select", { id: "run-group", onchange: () => apply({ group: group.value }) }, h("option", { value: "" }, "all"));
    const span = h("select", { id: "run-span", onchange: () => apply({ span: span.value }) }, SPANS.map(([value, name]) => h("option", { value }, name)));
    span.value = wanted.span;
    const said = h("p", { id: "run-said", class: "more", role: "status" }), box = h("div", { class: "picture" }), legend = h("ul", { class: "legend" }), nodes = h("ul", { class: "nodes" });
    const node = h("section", { class: "card", "aria-labelledby": "util" }, h("h2", { id: "util" }, "Utilization by node"), nodes);
    container.append(h("h1", {}, "Run"),
      h("form", { class: "filters card", onsubmit: (event) => event.preventDefault() }, h("div", { class: "fields" },
        h("label", { for: "run-where" }, "Endpoint", where), h("label", { for: "run-group" }, "Group", group), h("label", { for: "run-span" }, "The last", span))),
      h("section", { class: "card", "aria-label": "Tasks by worker over time" }, said, box, legend), node);
    let endpoints = null, groups = "";
    return async (topics) => {
      if (endpoints === null || topics.has("service")) {
        endpoints = (await get("overview")).endpoints;
        where.replaceChildren(h("option", { value: "" }, "all"), ...endpoints.map((each) => h("option", { value: each.endpoint_id }, each.display_name || each.name)));
        where.value = wanted.endpoint;
      }
      const [data, known] = await Promise.all([get("activity", { endpoint_id: wanted.endpoint, task_group_id: wanted.group, limit: MOST }), get("groups")]);
      const signature = JSON.stringify(known);
      if (signature !== groups && document.activeElement !== group) {
        groups = signature;
        const options = known.groups.map((each) => h("option", { value: each.id }, `${moment(each.submitted)} · ${each.function || "?"}${each.submissions > 1 ? ` and more` : ""}`));
        if (wanted.group && !known.groups.some((each) => each.id === wanted.group)) options.push(h("option", { value: wanted.group }, wanted.group.slice(0, 8)));
        group.replaceChildren(h("option", { value: "" }, "all"), ...options);
        group.value = wanted.group;
      }
      const end = data.tasks.some((each) => each.state === "running") ? now() : undefined;
      let runs = data.tasks.filter((each) => each.started).map((each) => ({ ...each, end: each.state === "running" ? now() : Math.max(each.stopped || each.started, each.started) })).sort((one, other) => one.started - other.started);
      const to = Math.max(end || 0, ...runs.map((each) => each.end));
      const shown = wanted.span === "all" || (!wanted.span && wanted.group) ? Infinity : Number(wanted.span || FITS);
      runs = runs.filter((each) => each.end > to - shown);
      draw(runs, to, shown, data);
    };

    function draw(runs, to, shown, data) {
      const waiting = Math.max(data.unfinished - data.tasks.filter((each) => each.state === "running").length, 0);
      node.hidden = !runs.length;
      if (!runs.length) {
        said.textContent = waiting ? `No task has run here yet. ${number(waiting)} of your tasks wait.` : "No task has run here yet.";
        box.replaceChildren(); legend.replaceChildren(); nodes.replaceChildren();
        return;
      }
      const from = Math.max(to - shown, runs[0].started), until = Math.max(to, from + 0.001);
      const names = [...new Set(runs.map((each) => each.function || "job"))].sort();
      const colourOf = (each) => names.indexOf(each.function || "job") % COLOURS;
      const found = lanes(runs), first = found.slice(0, MOST_LANES);
      const failed = runs.filter((each) => each.state === "failed").length, running = runs.filter((each) => each.state === "running").length;
      said.textContent = `${number(runs.length)} tasks in ${duration(until - from)} on ${number(found.length)} ${found.length === 1 ? "lane" : "lanes"}${running ? `, ${number(running)} running` : ""}${failed ? `, ${number(failed)} failed` : ""}${data.more ? "; only the newest" : ""}${found.length > first.length ? `; the first ${MOST_LANES} lanes` : ""}. From ${moment(from)}.${waiting ? ` ${number(waiting)} of your tasks wait.` : ""}`;
      box.replaceChildren(stream(first, from, until, colourOf), axisText(from, until));
      legend.replaceChildren(...names.slice(0, 12).map((name, index) => h("li", {}, h("span", { class: `swatch colour${index % COLOURS}`, "aria-hidden": "true" }), name)), ...(failed ? [h("li", {}, h("span", { class: "swatch failed", "aria-hidden": "true" }), "failed")] : []));
      nodes.replaceChildren(...utilization(found, from, until));
    }
  },
};
