// The list of tasks, with its filters.

import { get } from "./api.js";
import { age, badge, duration, h, moment, now, number, show, synchronize } from "./dom.js";

const OPEN = ["received", "pending", "queued", "running"];
/** What people choose, and the states that it stands for. */
const CHOICES = [["", "all", []], ["open", "unfinished", OPEN], ["running", "running", ["running"]], ["waiting", "waiting", ["received", "pending", "queued"]], ["failed", "failed", ["failed"]], ["cancelled", "cancelled", ["cancelled"]], ["success", "done", ["success"]]];
const FIRST = 50, MOST = 500;

/** Return how long a task waited and ran so far; `null`: unknown. */
export function times(task) {
  const end = task.stopped || task.ended;
  const waited = task.started ? task.started - task.submitted : task.ended ? null : now() - task.submitted;
  return { waited, ran: task.started ? (end || now()) - task.started : null };
}

function exit(task) {
  if (task.returncode === null || task.returncode === undefined) return "";
  return task.returncode < 0 ? `signal ${-task.returncode}` : `exit ${task.returncode}`;
}

const nameOf = (task) => task.function_name || (task.job ? `job ${task.job}` : "–");

function row(task, endpoints) {
  const { waited, ran } = times(task);
  const endpoint = endpoints.find((each) => each.endpoint_id === task.endpoint_id);
  const cell = (title, ...content) => h("td", { "data-title": title }, content);
  const live = !task.ended;
  return h("tr", { class: task.state },
    cell("State", badge(task.state)),
    cell("Function", h("a", { href: `#/task/${task.task_id}`, class: "name" }, nameOf(task))),
    cell("Endpoint", endpoint ? endpoint.display_name || endpoint.name : task.endpoint_id.slice(0, 8)),
    cell("Submitted", age(task.submitted)),
    cell("Waited", live && !task.started ? age(task.submitted, "") : waited === null ? "" : duration(waited)),
    cell("Ran", live && task.started ? age(task.started, "") : ran === null ? "" : duration(ran)),
    cell("End", exit(task), task.job ? h("span", { class: "job", title: "job id" }, `${exit(task) ? " " : ""}${task.job}`) : null),
    cell("Error", task.error ? h("span", { class: "error", title: task.error }, task.error) : ""));
}

/** Return a table of tasks: its element, and a function that shows tasks in it. */
export function taskTable(caption) {
  const body = h("tbody");
  const empty = h("p", { class: "more" }, "No tasks.");
  const table = h("table", { class: "tasks" }, h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, ["State", "Function", "Endpoint", "Submitted", "Waited", "Ran", "End", "Error"].map((each) => h("th", { scope: "col" }, each)))), body);
  return {
    element: h("div", { class: "scroll card" }, table, empty),
    show(list, endpoints) {
      show(body, list, (each) => each.task_id, (each) => row(each, endpoints));
      empty.hidden = list.length > 0;
      table.hidden = !list.length;
    },
    empty,
  };
}

export const tasks = {
  title: "Tasks",
  open(container, { query, setQuery, refresh }) {
    const filter = { state: query.get("state") || "", endpoint: query.get("endpoint") || "", function: query.get("function") || "", group: query.get("group") || "" };
    let length = FIRST, endpoints = null;
    const apply = (changed) => { Object.assign(filter, changed); length = FIRST; setQuery(filter); refresh(); };
    const states = h("div", { class: "choices", role: "group", "aria-label": "State" }, CHOICES.map(([value, name]) => {
      const button = h("button", { type: "button", "data-state": value, "aria-pressed": String(value === filter.state), onclick: () => {
        for (const each of states.children) each.setAttribute("aria-pressed", String(each === button));
        apply({ state: value });
      } }, name);
      return button;
    }));
    const where = h("select", { id: "where", onchange: () => apply({ endpoint: where.value }) }, h("option", { value: "" }, "all"));
    let pause = null;
    const later = (name, field) => () => { clearTimeout(pause); pause = setTimeout(() => { if (container.isConnected) apply({ [name]: field.value.trim() }); }, 300); };
    const named = h("input", { id: "named", type: "search", value: filter.function, maxlength: 256, placeholder: "part of its name" });
    named.addEventListener("input", later("function", named));
    const group = h("input", { id: "group", type: "search", value: filter.group, maxlength: 36, placeholder: "id", spellcheck: "false" });
    group.addEventListener("input", later("group", group));
    const table = taskTable("Tasks");
    const said = h("p", { class: "more", role: "status" });
    const more = h("button", { type: "button", onclick: () => { length = Math.min(length * 2, MOST); refresh(); } }, "Show more");
    more.hidden = true;
    container.append(h("h1", {}, "Tasks"),
      h("form", { class: "filters card", onsubmit: (event) => event.preventDefault() }, states,
        h("div", { class: "fields" },
          h("label", { for: "where" }, "Endpoint", where), h("label", { for: "named" }, "Function", named), h("label", { for: "group" }, "Group", group))),
      table.element, said, more);
    return async (topics) => {
      if (endpoints === null || topics.has("service")) {
        const data = await get("overview");
        synchronize(data.time);
        endpoints = data.endpoints;
        const known = endpoints.map((each) => h("option", { value: each.endpoint_id }, each.display_name || each.name));
        if (filter.endpoint && !endpoints.some((each) => each.endpoint_id === filter.endpoint)) known.push(h("option", { value: filter.endpoint }, filter.endpoint.slice(0, 8)));
        where.replaceChildren(h("option", { value: "" }, "all"), ...known);
        where.value = filter.endpoint;
      }
      const state = CHOICES.find(([value]) => value === filter.state)?.[2] || [];
      const wanted = { state, endpoint_id: filter.endpoint, task_group_id: filter.group, function: filter.function };
      const found = await search(wanted, length);
      table.show(found.tasks, endpoints);
      table.empty.textContent = found.next ? "None among the newest; older ones were not searched yet." : "No tasks match.";
      said.textContent = found.tasks.length ? `The newest ${number(found.tasks.length)}${found.next ? "" : ", and no more"}. Latest: ${moment(found.tasks[0].submitted)}` : "";
      more.hidden = !found.next || length >= MOST;
    };
  },
};

/** Ask until there are enough, or a few searches found too little: each takes a moment at most. */
async function search(wanted, length) {
  const found = { tasks: [], next: null };
  for (let turns = 0; turns < 3; turns += 1) {
    const answer = await get("tasks", { ...wanted, limit: length - found.tasks.length, before: found.next });
    found.tasks.push(...answer.tasks);
    found.next = answer.next;
    if (!found.next || found.tasks.length >= length) break;
  }
  return found;
}
