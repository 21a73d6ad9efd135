// One session: what was asked and answered, the prompt, its terminal, namespace and resources.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { duration, html, Namespace, Resources, State, Tabs } from "./parts.js";
import { attempt, detail, lookAtDetail, route } from "./store.js";
import { TerminalView } from "./terminal.js";

const TABS = [["", "Conversation"], ["terminal", "Terminal"], ["namespace", "Namespace"], ["resources", "Resources"]];
const OVER = new Set(["completed", "failed", "cancelled"]);

function Turn({ task }) {
  const over = OVER.has(task.state);
  const [, tick] = useState(0);
  useEffect(() => {
    if (task.state !== "working") return;
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, [task.state]);
  return html`<article class="turn" data-task=${task.id} data-state=${task.state}>
    <pre class="asked">${task.message}</pre>
    ${task.output && html`<pre class="answer">${task.output}</pre>`}
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
  const end = useRef(), place = useRef(), stuck = useRef(true);
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
        ${session.tasks.map((task) => html`<${Turn} key=${task.id} task=${task} />`)}
        ${session.tasks.length === 0 && html`<p class="empty">Nothing asked yet.</p>`}
        <div ref=${end}></div>
      </div>
    </div>
    <${Prompt} id=${session.id} />`;
}

function Shell({ session }) {
  const [task, setTask] = useState(() => sessionStorage.getItem(`shell-${session.id}`));
  async function open() {
    const body = { argv: ["/bin/sh", "-i"], pty: [24, 80], session: session.id };
    const made = await attempt("POST", "/api/programs", body);
    if (made) sessionStorage.setItem(`shell-${session.id}`, made.id), setTask(made.id);
  }
  if (task) {
    return html`<div class="bar small soft">task ${task}
        <button class="bare" onClick=${() => (sessionStorage.removeItem(`shell-${session.id}`), setTask(null))}>leave it</button>
      </div><${TerminalView} task=${task} />`;
  }
  return html`<div class="empty"><p>A shell as ${session.user}, in the session's namespace.</p>
    <button class="main" onClick=${open}>Open a shell</button></div>`;
}

export function SessionView() {
  const session = detail.value, { tab } = route.value;
  if (!session || session.id !== route.value.id) return html`<div class="empty">…</div>`;
  if (session.missing) return html`<div class="empty">There is no session “${session.id}”.</div>`;
  const post = (verb) => () => attempt("POST", `/api/sessions/${session.id}/${verb}`);
  const nobody = html`<p class="empty">No agent of this session runs now.</p>`;
  return html`
    <div class="bar">
      <h1>${session.id}</h1>
      <${State} state=${session.state} />
      ${session.folder && !session.live && html`<button onClick=${post("sync")}>Sync</button>`}
      ${session.state === "archived"
        ? html`<button onClick=${() => attempt("POST", "/api/sessions", { id: session.id })}>Open again</button>`
        : html`<button onClick=${post("stop")}>Stop</button><button class="wide" onClick=${post("archive")}>Archive</button>`}
    </div>
    <${Tabs} base=${`s/${session.id}`} tab=${tab} names=${TABS} />
    ${session.error && html`<div class="scroll" style="flex: none; padding-bottom: 0"><div class="notice bad column">${session.error}</div></div>`}
    ${tab === "" && html`<${Conversation} key=${session.id} session=${session} />`}
    ${tab === "terminal" && html`<${Shell} key=${session.id} session=${session} />`}
    ${tab === "namespace" && html`<div class="scroll">${session.agent_task ? html`<${Namespace} task=${session.agent_task} />` : nobody}</div>`}
    ${tab === "resources" && html`<div class="scroll">${session.agent_task ? html`<${Resources} task=${session.agent_task} />` : nobody}</div>`}
  `;
}
