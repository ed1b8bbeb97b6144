// The page as a whole: login, which view is open, and when it is refreshed.

import { get, listen, logIn, logOut } from "./api.js";
import { duration, h, problems, synchronize, tick } from "./dom.js";
import { overview } from "./overview.js";
import { run } from "./run.js";
import { task } from "./task.js";
import { tasks } from "./tasks.js";

const VIEWS = { overview, tasks, task, run };
const TOPICS = ["tasks", "endpoints", "service"];
/** Least milliseconds between two refreshes; milliseconds between two while the page is not live. */
const PAUSE = 1000, NOT_LIVE = 10_000;
/** Milliseconds after which a live page is refreshed although nothing has changed: another service of
 *  the same database may know of changes that this one does not. */
const LIVE = 60_000;

const main = document.getElementById("main");
const live = document.getElementById("live");
const page = { view: null, refresh: null, dirty: new Set(), busy: false, last: 0, timer: null, stop: null, isLive: false, again: 0 };

// --- which view ------------------------------------------------------------------------------------

function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/");
  return { name: name in VIEWS ? name : "overview", id: id && decodeURIComponent(id), query: new URLSearchParams(query) };
}

/** Replace the query of the present view, without a new entry in the history. */
export function setQuery(values) {
  const { name, id } = place();
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
  const path = [name === "overview" ? "" : name, id].filter((each) => each !== undefined).join("/");
  history.replaceState(null, "", `#/${path}${query.size ? `?${query}` : ""}`);
}

function open() {
  const { name, id, query } = place();
  const view = VIEWS[name];
  const container = h("div", { class: `view ${name}` });
  main.replaceChildren(container);
  document.title = `${view.title} · Flux Endpoint`;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === (name === "task" ? "tasks" : name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  page.refresh?.leave?.();
  page.view = view;
  page.refresh = view.open(container, { id, query, setQuery, refresh: () => refresh(TOPICS) });
  refresh(TOPICS);
}

// --- refreshing ------------------------------------------------------------------------------------

function refresh(topics) {
  for (const each of topics) page.dirty.add(each);
  if (!document.hidden && page.refresh) schedule(0);
}

function schedule(least) {
  clearTimeout(page.timer);
  if (page.busy || !page.stop) return;
  const quiet = page.isLive ? LIVE : NOT_LIVE;
  const wanted = page.dirty.size ? Math.max(least, PAUSE - (performance.now() - page.last)) : quiet;
  page.timer = setTimeout(() => { if (!page.dirty.size) TOPICS.forEach((each) => page.dirty.add(each)); turn(); }, Math.max(wanted, 0));
}

async function turn() {
  const topics = page.dirty, view = page.refresh;
  page.dirty = new Set();
  page.busy = true;
  page.last = performance.now();
  try {
    await view(topics);
    page.again = 0;
    failed(null);
  } catch (error) {
    if (error.status === 401) { end(error.message); return; }
    TOPICS.forEach((each) => page.dirty.add(each));
    page.again = Math.min((page.again || 1000) * 2, 30_000);
    if (view === page.refresh) failed(error);
  } finally {
    page.busy = false;
  }
  if (document.hidden) return;
  schedule(page.again);
}

function failed(error) {
  const old = document.getElementById("failure");
  if (!error) { old?.remove(); return; }
  const text = `${error.message} Trying again…`;
  if (old) old.textContent = text;
  else document.getElementById("problems").append(h("p", { id: "failure", class: "problem", role: "alert" }, text));
}

function setLive(isLive) {
  page.isLive = isLive;
  live.hidden = false;
  live.className = isLive ? "live on" : "live off";
  live.textContent = isLive ? "live" : `every ${duration(NOT_LIVE / 1000)}`;
  live.title = isLive ? "Changes show at once." : "The connection for changes is closed; the page asks now and then.";
}

function connect() {
  page.stop?.();
  let again = null;
  const stop = listen(
    (topics) => refresh(topics),
    (isLive, isClosed) => {
      setLive(isLive);
      if (isLive) refresh(TOPICS);
      // Refused: there are too many, or the session has ended. The next refresh tells which.
      else if (isClosed) again = setTimeout(connect, 30_000);
      else schedule(0);
    },
  );
  page.stop = () => { clearTimeout(again); stop(); page.stop = null; };
}

// --- login -----------------------------------------------------------------------------------------

async function begin() {
  const code = location.hash.match(/^#login=([^&]+)/)?.[1];
  try {
    if (code) {
      // The code leaves the address, and so the history, before anything else.
      history.replaceState(null, "", `${location.pathname}#/`);
      await logIn({ code: decodeURIComponent(code) });
    }
    const first = await get("overview");
    synchronize(first.time);
    document.getElementById("user").textContent = first.user;
    problems(first.problems);
  } catch (error) {
    end(code || error.status !== 401 ? error.message : "");
    return;
  }
  for (const id of ["views", "logout"]) document.getElementById(id).hidden = false;
  setLive(false);
  connect();
  open();
}

function end(reason) {
  page.stop?.();
  clearTimeout(page.timer);
  page.refresh?.leave?.();
  page.refresh = null;
  for (const id of ["views", "logout", "live"]) document.getElementById(id).hidden = true;
  document.getElementById("user").textContent = "";
  document.getElementById("problems").replaceChildren();
  document.title = "Log in · Flux Endpoint";
  const field = h("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const said = h("p", { class: "problem", role: "alert" }, reason);
  said.hidden = !reason;
  const form = h("form", { class: "login card" },
    h("h1", {}, "Log in"),
    said,
    h("p", {}, "Where the command line has your token, ", h("code", {}, "flux-endpoint dashboard"), " prints a link that logs in."),
    h("label", { for: "token" }, "Or your token:"), field,
    h("button", { type: "submit" }, "Log in"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await logIn({ token: field.value });
      field.value = "";
      begin();
    } catch (error) {
      said.hidden = false;
      said.textContent = error.message;
      field.select();
    }
  });
  main.replaceChildren(form);
  field.focus();
}

// --- the frame -------------------------------------------------------------------------------------

const THEMES = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  try { localStorage.setItem("flux-endpoint-theme", name); } catch { /* it lasts as long as the page */ }
  const button = document.getElementById("theme");
  const [sign, text] = THEMES[name];
  button.replaceChildren(h("span", { "aria-hidden": "true" }, sign));
  button.setAttribute("aria-label", `Theme: ${text}`);
  button.title = `Theme: ${text}`;
}

setTheme(document.documentElement.dataset.theme || "");
document.getElementById("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length]);
});
document.getElementById("logout").addEventListener("click", async () => {
  try { await logOut(); } catch { /* the cookie ends by itself */ }
  end("");
});
document.querySelector("[data-skip]").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#login=")) begin();
  else if (page.stop) { open(); window.scrollTo(0, 0); }
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && page.stop) schedule(0); });
setInterval(() => { if (!document.hidden) tick(); }, 1000);
begin();
