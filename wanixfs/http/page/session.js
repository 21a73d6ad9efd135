// One session: what was asked and answered, the prompt, its terminal, namespace and resources.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { duration, html, Namespace, Resources, State, Tabs } from "./parts.js";
import { attempt, detail, lookAtDetail, lookFurtherBack, route, syncing, useTasks } from "./store.js";
import { TerminalView } from "./terminal.js";

const TABS = [["", "Conversation"], ["terminal", "Terminal"], ["namespace", "Namespace"], ["resources", "Resources"]];
const OVER = new Set(["completed", "failed", "cancelled"]);

function Turn({ task, plain }) {
  const over = OVER.has(task.state);
  const [, tick] = useState(0);
  useEffect(() => {
    if (task.state !== "working") return;
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, [task.state]);
  return html`<article class="turn" data-task=${task.id} data-state=${task.state}>
    <pre class="asked text">${task.message}</pre>
    ${task.output && html`<pre class=${`answer ${plain ? "" : "text"}`}>${task.output}</pre>`}
    <div class="foot">
      <${State} state=${task.state} />
      ${task.reason && html`<span>${task.reason}</span>`}
      ${task.started && html`<span>${duration(task.started, task.ended)}</span>`}
      ${!over && html`<button class="bare" onClick=${() => attempt("POST", `/api/tasks/${task.id}/cancel`)}>cancel</button>`}
    </div>
  </article>`;
}

function Prompt({ id }) {
  const [sending, setSending] = useState(false);
  const box = useRef();
  useEffect(() => box.current.focus(), [id]);
  async function send(event) {
    event.preventDefault();
    const message = box.current.value;
    if (!message.trim() || sending) return;
    setSending(true);
    // The key makes it one prompt, however often it is sent.
    const taken = await attempt("POST", `/api/sessions/${id}/task`, { message, key: (box.current.dataset.key ||= crypto.randomUUID?.() ?? String(Math.random())) });
    setSending(false);
    if (!taken) return;
    box.current.value = "";
    delete box.current.dataset.key;
    lookAtDetail();
  }
  const keys = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && send(event);
  return html`<div class="ask"><form onSubmit=${send}>
    <textarea ref=${box} id="prompt" rows="1" placeholder="Ask…" aria-label="Prompt" onKeyDown=${keys}></textarea>
    <button class="main" disabled=${sending}>Send</button>
  </form></div>`;
}

function Conversation({ session }) {
  const place = useRef(), stuck = useRef(true), [more, setMore] = useState(true), plain = session.run.length > 0;
  const back = async () => ((stuck.current = false), setMore(await lookFurtherBack()));
  useLayoutEffect(() => {
    if (stuck.current) place.current.scrollTop = place.current.scrollHeight;
  });
  const scrolled = ({ target }) => (stuck.current = target.scrollHeight - target.scrollTop - target.clientHeight < 60);
  return html`<div class="scroll" ref=${place} onScroll=${scrolled}>
      <div class="column" aria-live="polite">
        ${session.conflicts?.length > 0 && html`<div class="notice">
          Changed on both sides, both versions kept:
          ${session.conflicts.map((line) => html`<div class="mono">${line}</div>`)}
        </div>`}
        ${more && session.tasks.length >= 50 && html`<button class="bare" onClick=${back}>earlier</button>`}
        ${[...session.older, ...session.tasks].map((task) => html`<${Turn} key=${task.id} task=${task} plain=${plain} />`)}
        ${session.tasks.length === 0 && html`<p class="empty">Nothing asked yet.</p>`}
      </div>
    </div>
    <${Prompt} id=${session.id} />`;
}

/** The tasks of the tree that are this session's: its agent or runs, and the shells that were opened in it. */
function useProgramsOf(session) {
  const all = useTasks("/api/programs");
  if (!Array.isArray(all)) return { ready: false, shells: [] };
  const here = all.filter((task) => task.labels.session === session.id && task.status !== "exited");
  const work = here.findLast((task) => task.id === session.agent_task) ?? here.findLast((task) => !task.pty) ?? here.at(-1);
  return { ready: true, shells: here.filter((task) => task.pty), work: work?.id };
}

function Shell({ session, shells }) {
  const [chosen, choose] = useState(null);
  const task = chosen ?? shells.at(-1)?.id;
  async function open() {
    const made = await attempt("POST", "/api/programs", { argv: ["/bin/sh", "-i"], pty: [24, 80], session: session.id });
    if (made) choose(made.id);
  }
  if (!task) {
    return html`<div class="empty"><p>A shell as ${session.user}, in the session's namespace.</p>
      <button class="main" onClick=${open}>Open a shell</button></div>`;
  }
  return html`<div class="bar small">
      ${shells.map(({ id }) => html`<button class="bare" aria-pressed=${id === task} onClick=${() => choose(id)}>shell ${id}</button>`)}
      <button class="bare" onClick=${open}>+ another</button>
    </div>
    <${TerminalView} key=${task} task=${task} />`;
}

export function SessionView() {
  const session = detail.value;
  if (!session || session.id !== route.value.id) return html`<div class="empty">…</div>`;
  if (session.missing) return html`<div class="empty">There is no session “${session.id}”.</div>`;
  return html`<${Session} key=${session.id} session=${session} />`;
}

function Session({ session }) {
  const { tab } = route.value, { shells, work, ready } = useProgramsOf(session), sync = syncing.value;
  const post = (verb) => () => attempt("POST", `/api/sessions/${session.id}/${verb}`);
  const nobody = html`<p class="empty">Nothing of this session runs now.</p>`;
  return html`
    <div class="bar">
      <h1>${session.id}</h1>
      <${State} state=${session.state} />
      ${sync && html`<span class="soft small">syncing: ${sync.done}${sync.total ? ` of ${sync.total}` : ""} files</span>`}
      <a href=${`/fs/sessions/${session.id}/`} target="_blank">Files</a>
      ${session.folder && !session.live && html`<button onClick=${post("sync")}>Sync</button>`}
      ${session.state === "archived"
        ? html`<button onClick=${() => attempt("POST", "/api/sessions", { id: session.id })}>Open again</button>`
        : html`<button onClick=${post("stop")}>Stop</button><button class="wide" onClick=${post("archive")}>Archive</button>`}
    </div>
    <${Tabs} base=${`s/${session.id}`} tab=${tab} names=${TABS} />
    ${session.error && html`<div class="scroll" style="flex: none; padding-bottom: 0"><div class="notice bad column">${session.error}</div></div>`}
    ${tab === "" && html`<${Conversation} session=${session} />`}
    ${tab === "terminal" && ready && html`<${Shell} session=${session} shells=${shells} />`}
    ${tab === "namespace" && html`<div class="scroll">${work ? html`<${Namespace} task=${work} />` : nobody}</div>`}
    ${tab === "resources" && html`<div class="scroll">${work ? html`<${Resources} task=${work} />` : nobody}</div>`}
  `;
}
