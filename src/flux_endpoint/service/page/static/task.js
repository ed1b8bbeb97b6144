// One task: its way from submission to result, its events, its output.

import { get } from "./api.js";
import { badge, bytes, duration, h, moment, now, s } from "./dom.js";
import { liveOutput } from "./output.js";
import { times } from "./tasks.js";

/** Parts of a task's way: from when, to when, and what it is called. */
function phases(found) {
  const task = found, { published, events } = found, at = (name) => events.findLast((each) => each.name === name)?.timestamp;
  const end = task.ended || now(), submit = at("submit"), started = task.started, stopped = task.stopped;
  const marks = [["sent", task.submitted, published || started || end], ["waiting", published, submit || started || end]];
  if (submit) marks.push(["queue", submit, at("alloc") || started || end]);
  if (at("alloc")) marks.push(["starting", at("alloc"), started || end]);
  marks.push(["running", started, stopped || end], ["result", stopped, end]);
  const names = { sent: "sent to RabbitMQ", waiting: "waits for a worker", queue: "waits for resources", starting: "starts", running: "runs", result: "result on its way" };
  if (submit) names.waiting = "on its way to Flux";
  else if (!started && task.ended) names.waiting = "waits";
  return marks.filter(([, from, to]) => from && to && to >= from).map(([kind, from, to]) => ({ kind, from, to, name: names[kind] }));
}

function bar(parts, from, to) {
  const span = Math.max(to - from, 1e-6), width = 1000;
  return s("svg", { class: "timeline", viewBox: `0 0 ${width} 26`, preserveAspectRatio: "none", "aria-hidden": "true" },
    parts.map((part) => s("rect", { class: `phase ${part.kind}`, x: (width * (part.from - from)) / span, width: Math.max((width * (part.to - part.from)) / span, 2), y: 2, height: 22 },
      s("title", {}, `${part.name}: ${duration(part.to - part.from)}`))));
}

function way(found) {
  const parts = phases(found), task = found;
  if (!parts.length) return h("p", { class: "more" }, "Nothing is known of its way yet.");
  const from = task.submitted, to = Math.max(...parts.map((each) => each.to));
  return h("div", {}, bar(parts, from, to),
    h("ol", { class: "legend phases" }, parts.map((part) => h("li", {}, h("span", { class: `swatch ${part.kind}`, "aria-hidden": "true" }), `${part.name} `, h("strong", {}, duration(part.to - part.from))))));
}

const QUIET = new Set(["type", "scheduler"]);

function contextText(context) {
  return Object.entries(context).filter(([key]) => !QUIET.has(key)).map(([key, value]) => `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
}

function timeline(found) {
  const task = found, { published, events } = found;
  const rows = [{ at: task.submitted, name: "submitted", text: "" }];
  if (published) rows.push({ at: published, name: "RabbitMQ has it", text: "" });
  rows.push(...events.map((each) => ({ at: each.timestamp, name: each.name, text: contextText(each.context), event: true })));
  if (!events.some((each) => each.name === "start") && task.started) rows.push({ at: task.started, name: "began to run", text: "" });
  if (!events.some((each) => each.name === "finish") && task.stopped) rows.push({ at: task.stopped, name: "ceased to run", text: "" });
  if (task.ended) rows.push({ at: task.ended, name: "result stored", text: "" });
  rows.sort((one, other) => one.at - other.at);
  return h("table", { class: "events" }, h("caption", { class: "hidden" }, "Events in order"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Time"), h("th", { scope: "col" }, "After"), h("th", { scope: "col" }, "Event"), h("th", { scope: "col" }, "Details"))),
    h("tbody", {}, rows.map((row) => h("tr", {},
      h("td", { class: "number" }, moment(row.at, { fine: true })), h("td", { class: "number" }, `+${duration(row.at - task.submitted)}`),
      h("td", {}, row.event ? h("code", {}, row.name) : row.name), h("td", { class: "wrap" }, row.text)))));
}

function text(title, content, kind = "") {
  if (content === null || content === undefined || content === "") return null;
  return h("section", {}, h("h3", {}, title), h("pre", { class: kind, tabindex: "0", "aria-label": title }, content));
}

function ending(task) {
  if (task.returncode === null || task.returncode === undefined) return null;
  return task.returncode < 0 ? `signal ${-task.returncode}` : `exit code ${task.returncode}`;
}

function facts(found) {
  const task = found, { details } = found, { waited, ran } = times(task);
  const rows = [
    ["Task", h("code", {}, task.task_id)],
    ["Endpoint", h("a", { href: `#/tasks?endpoint=${task.endpoint_id}` }, found.endpoint_name || task.endpoint_id)],
    ["Group", h("span", {}, h("a", { href: `#/tasks?group=${task.task_group_id}` }, task.task_group_id.slice(0, 8)), " · ", h("a", { href: `#/run?group=${task.task_group_id}` }, "its run"))],
    ["Submitted", moment(task.submitted)],
    ["Waited", duration(waited)],
    ["Ran", duration(ran)],
    ["Job", task.job && h("code", {}, task.job)],
    ["Node", task.node],
    ["Worker", task.worker && `process ${task.worker}`],
    ["Attempts", task.attempts > 1 ? task.attempts : null],
    ["Failed attempts", (task.failed_attempts || []).map((reason, index) => `${index + 1}: ${reason}`).join(" · ")],
    ["Options", task.run_options && contextText(task.run_options)],
    ["End", ending(task)],
    ["CPU time", typeof task.cpu_time === "number" ? duration(task.cpu_time) : null],
    ["Peak memory", task.max_rss ? bytes(task.max_rss) : null],
    ["Resources", task.resource_specification && contextText(task.resource_specification)],
    ["Result", found.output.size ? bytes(found.output.size) : null],
    ["Python", details.python_version],
  ];
  return h("dl", { class: "facts wide" }, rows.filter(([, each]) => each !== null && each !== undefined && each !== "").map(([name, each]) => h("div", {}, h("dt", {}, name), h("dd", {}, each))));
}

function above(found) {
  const task = found, { output } = found;
  return [
    h("header", { class: "title" }, h("h1", {}, task.function_name || (task.job ? `Job ${task.job}` : "Task")), badge(task.state)),
    output.error ? h("section", { class: "card" }, text("Error", output.error, "error")) : null,
    h("section", { class: "card", "aria-label": "Its way" }, way(found), facts(found)),
  ].filter(Boolean);
}

function below(found) {
  const { output } = found;
  return [
    output.command || output.stdout || output.stderr || output.value ? h("section", { class: "card" },
      text("Command", output.command), text("Last lines of its standard output", output.stdout), text("Last lines of its standard error", output.stderr), text("Value", output.value)) : null,
    h("section", { class: "card" }, h("h2", {}, "Timeline"), timeline(found)),
  ].filter(Boolean);
}

export const task = {
  title: "Task",
  open(container, { id, refresh }) {
    let shown = "";
    const printed = liveOutput(id, refresh), top = h("div"), rest = h("div");
    container.replaceChildren(h("p", { class: "back" }, h("a", { href: "#/tasks" }, "← Tasks")), top, printed.section, rest);
    const show = async () => {
      const found = await get(`tasks/${encodeURIComponent(id)}`);
      if (!container.isConnected) return;
      document.title = `${found.function_name || "Task"} ${found.state} · Flux Endpoint`;
      if (found.ended) printed.stop();
      else printed.open();
      const signature = JSON.stringify(found);
      if (signature === shown && found.ended) return;
      shown = signature;
      top.replaceChildren(...above(found));
      rest.replaceChildren(...below(found));
    };
    return Object.assign(show, { leave: printed.stop });
  },
};
