// What the page knows, and how it stays true: records are read where they are kept, events tell when to look again.
import { useEffect, useState } from "preact/hooks";
import { signal } from "@preact/signals";

const PAGE = 50;

export const sessions = signal([]);
export const active = signal(null);
export const loaded = signal(false);
export const detail = signal(null); // the open session: its record with `tasks`, and `seq`, the event it holds for
export const syncing = signal(null); // how far the sync of the open session is
const bell = signal(0); // rung when something has happened to a task of the tree
export const link = signal("lost"); // "live" while events flow
export const trouble = signal("");
export const route = signal(parse());

function parse() {
  const [view = "", id = "", tab = ""] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return { view, id, tab };
}
addEventListener("hashchange", () => (route.value = parse()));

export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Ask the server; JSON in and out. Throws Refused with what it says, or TypeError where it cannot be reached. */
export async function ask(method, path, body) {
  const headers = body === undefined || body instanceof Uint8Array ? {} : { "content-type": "application/json" };
  const data = body === undefined || body instanceof Uint8Array ? body : JSON.stringify(body);
  const answer = await fetch(path, { method, headers, body: data });
  if (answer.status === 401) location.reload();
  const json = (answer.headers.get("content-type") ?? "").startsWith("application/json");
  const result = json ? await answer.json() : await answer.text();
  if (!answer.ok) throw new Refused(answer.status, result.error?.code, result.error?.message ?? answer.statusText);
  return { result, seq: Number(answer.headers.get("x-seq")) };
}

/** Do what a person asked for; what goes wrong is shown. Returns the result, undefined after a failure. */
export async function attempt(method, path, body) {
  try {
    trouble.value = "";
    return (await ask(method, path, body)).result;
  } catch (error) {
    trouble.value = error.message;
  }
}

// Each of these reads one thing. Asked again while it reads, it reads once more after; after a failure it tries again.
function reader(read) {
  let running = false, again = false;
  return async function look() {
    again = true;
    if (running) return;
    running = true;
    for (let wait = 250; again; ) {
      again = false;
      try {
        await read();
        wait = 250;
      } catch (error) {
        if (error instanceof Refused && error.status < 500) continue;
        again = true;
        await new Promise((done) => setTimeout(done, wait));
        wait = Math.min(wait * 2, 5000);
      }
    }
    running = false;
  };
}

export const lookAtSessions = reader(async () => {
  const { result } = await ask("GET", "/api/sessions");
  sessions.value = result.sessions;
  active.value = result.active;
  loaded.value = true;
});

export const lookAtDetail = reader(async () => {
  const { view, id } = route.value;
  if (view !== "s") return void (detail.value = null);
  try {
    const { result, seq } = await ask("GET", `/api/sessions/${encodeURIComponent(id)}?limit=${PAGE}`);
    if (route.value.id !== id) return;
    const open = detail.value?.id === id ? detail.value : null;
    if (open?.seq > seq) return void lookAtDetail(); // events have told more meanwhile: what was read is old
    const before = open?.older ?? []; // what was asked for besides stays
    detail.value = { ...result, seq, older: before };
  } catch (error) {
    if (error.status === 404) detail.value = { id, missing: true, tasks: [], seq: 0 };
    throw error;
  }
});

/** Show what was asked before the first prompt that is shown; returns whether there may be more. */
export async function lookFurtherBack() {
  const open = detail.value, [first] = [...open.older, ...open.tasks];
  const found = await attempt("GET", `/api/history?session=${encodeURIComponent(open.id)}&before=${first.id}&limit=${PAGE}`);
  if (found && detail.value?.id === open.id) detail.value = { ...detail.value, older: [...found.reverse(), ...open.older] };
  return found?.length === PAGE;
}

function happened(event) {
  const open = detail.value;
  if (event.event === "output") {
    // What the record held when it was read is not added again.
    if (open?.id !== event.session || event.seq <= open.seq) return;
    const tasks = open.tasks.map((task) => (task.id === event.turn ? { ...task, output: task.output + event.text } : task));
    if (!open.tasks.some((task) => task.id === event.turn)) lookAtDetail();
    detail.value = { ...open, tasks, seq: event.seq };
    return;
  }
  if (event.event === "sync") {
    if (open?.id === event.session) syncing.value = event.what === "done" ? null : event;
    if (event.what !== "done") return;
  }
  lookAtSessions();
  if (open?.id === event.session || route.value.id === event.session) lookAtDetail();
}

/** Listen from `seq` on, for ever: the browser comes back by itself and names the last event it had. */
async function listen() {
  let seq;
  const first = reader(async () => ({ seq } = await ask("GET", "/api/sessions")));
  await first();
  const source = new EventSource(`/api/events?tasks=1&since=${seq}`);
  const refresh = () => ((syncing.value = null), bell.value++, lookAtSessions(), lookAtDetail());
  source.onopen = () => ((link.value = "live"), refresh());
  source.onmessage = (message) => happened(JSON.parse(message.data));
  source.addEventListener("reset", refresh);
  source.addEventListener("tasks", () => bell.value++);
  source.onerror = () => {
    link.value = "lost";
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 1000); // refused: the server is starting, say
  };
}

/** Read `path` of the API now and whenever something happens to a task of the tree; null before, {missing} without. */
export function useTasks(path) {
  const [value, setValue] = useState(null);
  useEffect(() => {
    let gone = false;
    const read = reader(async () => {
      const { result } = await ask("GET", path).catch((error) => {
        if (error.status === 404) return { result: { missing: true } };
        throw error;
      });
      gone || setValue(result);
    });
    const stop = bell.subscribe(read);
    return () => ((gone = true), stop());
  }, [path]);
  return value;
}

export function start() {
  lookAtSessions();
  route.subscribe(() => lookAtDetail());
  listen();
}

/** Read a file of the tree as text. */
export async function readFile(path) {
  const answer = await fetch(`/fs${path}`);
  if (!answer.ok) throw new Refused(answer.status, "", (await answer.json()).error?.message);
  return answer.text();
}

/** Follow a file that grows: `take` gets its bytes, in order and once, over lost connections too, until its end. */
export async function follow(path, take, ended) {
  let offset = 0;
  for (let wait = 250; !ended.aborted; ) {
    try {
      const answer = await fetch(`/fs${path}?offset=${offset}`, { signal: ended });
      if (answer.status === 404) return;
      if (!answer.ok) throw new Error(answer.statusText);
      for (const body = answer.body.getReader(); ; ) {
        const { value, done } = await body.read();
        if (done) return;
        offset += value.length;
        take(value);
        wait = 250;
      }
    } catch {
      if (ended.aborted) return;
      await new Promise((done) => setTimeout(done, wait));
      wait = Math.min(wait * 2, 5000);
    }
  }
}
