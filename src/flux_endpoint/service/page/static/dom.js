// Elements and texts. All text of others goes through textContent: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((each) => each !== null && each !== undefined && each !== false)
    .map((each) => (each instanceof Node ? each : String(each))));
  return element;
}

/** Return an HTML element. */
export const h = (name, attributes, ...children) => build(document.createElement(name), attributes, children);

/** Return an SVG element. */
export const s = (name, attributes, ...children) => build(document.createElementNS(SVG, name), attributes, children);

/**
 * Show `items` as the children of `parent`, keeping those that are unchanged: the focus, a selection
 * and the place in the page survive a refresh.
 */
export function show(parent, items, key, render) {
  const known = new Map([...parent.children].map((each) => [each.dataset?.key, each]));
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const where = focused?.closest("[data-key]")?.dataset.key;
  const wanted = items.map((item) => {
    const name = String(key(item)), signature = JSON.stringify(item), old = known.get(name);
    if (old && old.signature === signature) return old;
    const made = render(item);
    made.dataset.key = name;
    made.signature = signature;
    return made;
  });
  wanted.forEach((each, index) => {
    if (parent.children[index] !== each) parent.insertBefore(each, parent.children[index] || null);
  });
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
  if (focused && !focused.isConnected && where !== undefined) {
    const again = wanted.find((each) => each.dataset.key === where);
    (again?.matches("a,button,[tabindex]") ? again : again?.querySelector("a,button,[tabindex]"))?.focus();
  }
}

const UNITS = [["d", 86400], ["h", 3600], ["min", 60]];

/** Return a duration in its largest unit or two. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 0) seconds = 0;
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(seconds < 0.995 ? 2 : 1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  for (let index = 0; index < UNITS.length; index += 1) {
    const [unit, size] = UNITS[index];
    if (seconds >= size) {
      const [small, part] = UNITS[index + 1] || ["s", 1];
      const whole = Math.floor(seconds / size), rest = Math.floor((seconds - whole * size) / part);
      return whole >= 10 || !rest ? `${whole} ${unit}` : `${whole} ${unit} ${rest} ${small}`;
    }
  }
  return "–";
}

/** Return a number of bytes. */
export function bytes(size) {
  if (size === null || size === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  while (size >= 1024 && index < units.length - 1) { size /= 1024; index += 1; }
  return `${size >= 100 || index === 0 ? Math.round(size) : size.toFixed(1)} ${units[index]}`;
}

/** Return a number with separators, a small rate with three digits. */
export function number(value) {
  if (typeof value !== "number") return "–";
  if (value !== 0 && Math.abs(value) < 10 && !Number.isInteger(value)) return String(Number(value.toPrecision(2)));
  return Math.round(value).toLocaleString("en");
}

/** Return the time of day, with the date if it is not today's. */
export function moment(seconds, { fine = false } = {}) {
  const at = new Date(seconds * 1000);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("en-CA")} `;
  const time = at.toLocaleTimeString("en-GB");
  return `${day}${time}${fine ? `.${String(at.getMilliseconds()).padStart(3, "0")}` : ""}`;
}

let skew = 0;
/** Note the service's time, from which ages are counted. */
export function synchronize(seconds) { skew = seconds - Date.now() / 1000; }
/** Return the service's time. */
export const now = () => Date.now() / 1000 + skew;

function ageText(since, suffix) {
  const seconds = Math.max(Math.floor(now() - since), 0);
  if (seconds < 1 && suffix === " ago") return "just now";
  return (seconds < 60 ? `${seconds} s` : duration(seconds)) + suffix;
}

/** Return an element with an age that goes on by itself. */
export function age(since, suffix = " ago") {
  const made = h("time", { datetime: new Date(since * 1000).toISOString(), title: moment(since), "data-since": since, "data-suffix": suffix });
  made.textContent = ageText(since, suffix);
  return made;
}

/** Let all ages go on. */
export function tick() {
  for (const each of document.querySelectorAll("[data-since]")) {
    const text = ageText(Number(each.dataset.since), each.dataset.suffix);
    if (each.textContent !== text) each.textContent = text;
  }
}

const STATES = {
  received: ["◌", "received"], pending: ["◌", "waiting"], queued: ["◔", "in Flux's queue"],
  running: ["●", "running"], success: ["✓", "done"], failed: ["✕", "failed"], cancelled: ["⊘", "cancelled"],
};
/** Return a state's name for people. */
export const stateName = (state) => (STATES[state] || ["?", state])[1];
/** Return a state with its sign, its colour and its name. */
export function badge(state) {
  const [sign, name] = STATES[state] || ["?", state];
  return h("span", { class: `badge ${state}` }, h("span", { "aria-hidden": "true", class: "sign" }, sign), name);
}

/** Show what is wrong with the service; the overview knows. */
export function problems(texts) {
  const box = document.getElementById("problems");
  const list = box.querySelector("ul") || box.appendChild(h("ul", { class: "problems" }));
  show(list, texts, (text) => text, (text) => h("li", { class: "problem" }, h("span", { "aria-hidden": "true" }, "⚠ "), text));
  if (!texts.length) list.remove();
}
