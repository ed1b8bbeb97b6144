// What a running task prints, as it comes, while its page is open and shows.

import { listenToOutput } from "./api.js";
import { h } from "./dom.js";

/** The most lines and characters of each stream that show. */
const LINES = 100, LENGTH = 16_384;
/** Milliseconds before the service is asked again after it has refused. */
const AGAIN = 30_000;
const NAMES = { stdout: "Standard output", stderr: "Standard error" };

const linesOf = (text) => text.split("\n").length - 1;

/** Return the end of a text. */
function end(text) {
  const lines = text.slice(-LENGTH).split("\n");
  return lines.slice(-LINES - (lines.at(-1) === "" ? 1 : 0)).join("\n");
}

function stream(name) {
  const title = `${NAMES[name]}, as it comes`;
  const box = h("pre", { role: "log", "aria-live": "polite", tabindex: "0", "aria-label": title });
  const more = h("p", { class: "more", hidden: true }, "Earlier lines are not shown.");
  const part = h("section", { hidden: true }, h("h3", {}, NAMES[name]), more, box);
  let length = 0, lines = 0, attempt = 1;

  // Each line is a node of its own: a screen reader says what is new, and only that.
  function add(text, of) {
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 4;
    const isNew = of > attempt, between = box.textContent && !box.textContent.endsWith("\n") ? "\n" : "";
    attempt = of;
    const last = (isNew ? `${between}[... attempt ${of} begins ...]\n` : "") + end(text);
    box.append(...(last.match(/[^\n]*\n|[^\n]+$/g) || []));
    length += last.length;
    lines += linesOf(last);
    while (box.childNodes.length > 1 && (length > LENGTH || lines > LINES)) {
      const first = box.firstChild.textContent;
      length -= first.length;
      lines -= linesOf(first);
      box.firstChild.remove();
      more.hidden = false;
    }
    if (end(text).length < text.length) more.hidden = false;
    part.hidden = false;
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }
  return { part, add };
}

/** Return a section that shows a task's output, and functions that begin and end this. */
export function liveOutput(id, ended) {
  const streams = { stdout: stream("stdout"), stderr: stream("stderr") };
  const section = h("section", { class: "card live-output", "aria-label": "Output while it runs", hidden: true },
    streams.stdout.part, streams.stderr.part);
  let close = null, after = "", refused = -AGAIN, wanted = true;

  function open() {
    if (close || !wanted || document.hidden || performance.now() - refused < AGAIN) return;
    close = listenToOutput(id, after, (data, identifier) => {
      after = identifier;
      for (const name of Object.keys(streams)) if (name in data) streams[name].add(data[name], data.attempt);
      section.hidden = false;
    }, (isOver) => {
      pause();
      if (isOver) ended();
      else refused = performance.now();
    });
  }

  function pause() { close?.(); close = null; }
  const visible = () => { if (document.hidden) pause(); else open(); };
  document.addEventListener("visibilitychange", visible);
  function stop() {
    wanted = false;
    section.remove();
    document.removeEventListener("visibilitychange", visible);
    pause();
  }
  return { section, open, stop };
}
