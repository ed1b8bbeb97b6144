// Requests to the service. URLs are relative, so that a proxy may put a prefix before all of them.

export class ApiError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function request(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method, credentials: "same-origin", cache: "no-store", redirect: "error",
      headers: { Accept: "application/json", ...(method === "GET" ? {} : { "Content-Type": "application/json", "X-Flux-Endpoint": "page" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ApiError("The service can't be reached.", 0);
  }
  let content = null;
  try { content = await answer.json(); } catch { /* a proxy's page, say */ }
  if (!answer.ok) throw new ApiError(content?.message || `The service answers ${answer.status}.`, answer.status);
  return content;
}

/** Return the answer to a GET below `page/`, with the parameters that have a value. */
export function get(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) if (each !== undefined && each !== null && each !== "") query.append(name, each);
  }
  const text = query.toString();
  return request("GET", `page/${path}${text ? `?${text}` : ""}`);
}

export const logIn = (credential) => request("POST", "page/session", credential);
export const logOut = () => request("DELETE", "page/session");

/**
 * Listen to changes. `changed` gets a list of topics, `state` whether the stream is open. Returns a
 * function that ends it.
 */
export function listen(changed, state) {
  const source = new EventSource("page/events");
  source.addEventListener("open", () => state(true));
  source.addEventListener("error", () => state(false, source.readyState === EventSource.CLOSED));
  source.addEventListener("changed", (event) => changed(JSON.parse(event.data)));
  return () => source.close();
}

/**
 * Listen to what a task prints after the event `after`. `came` gets the texts by stream and the
 * event's identifier; `closed` whether the task has ended: else the service has nothing to send.
 * Returns a function that ends it.
 */
export function listenToOutput(id, after, came, closed) {
  const source = new EventSource(`page/tasks/${encodeURIComponent(id)}/output?${new URLSearchParams({ after })}`);
  source.addEventListener("output", (event) => came(JSON.parse(event.data), event.lastEventId));
  source.addEventListener("ended", () => closed(true));
  source.addEventListener("error", () => { if (source.readyState === EventSource.CLOSED) closed(false); });
  return () => source.close();
}
