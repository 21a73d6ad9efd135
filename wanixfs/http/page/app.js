// The page: the frame around the views, and the keys that work everywhere.
import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { signal } from "@preact/signals";
import { html } from "./parts.js";
import { ProgramView, Programs } from "./programs.js";
import { SessionView } from "./session.js";
import { attempt, detail, link, loaded, route, sessions, start, trouble } from "./store.js";

const making = signal(false), helping = signal(false), menu = signal(false);
const shown = () => sessions.value.filter((session) => session.state !== "archived").concat(
  sessions.value.filter((session) => session.state === "archived"),
);

function Dialog({ open, children }) {
  const place = useRef();
  useEffect(() => {
    if (open.value) place.current.showModal();
    else place.current.close();
  }, [open.value]);
  return html`<dialog ref=${place} onClose=${() => (open.value = false)}>${open.value && children}</dialog>`;
}

function NewSession() {
  async function make(event) {
    event.preventDefault();
    const form = new FormData(event.target), body = { id: form.get("id") };
    for (const name of ["model", "folder"]) if (form.get(name)) body[name] = form.get(name);
    if (form.get("command")) body.run = ["/bin/sh", "-c", form.get("command")];
    making.value = false;
    location.hash = `#/s/${body.id}`;
    await attempt("POST", "/api/sessions", body);
  }
  return html`<form onSubmit=${make}>
    <h1>New session</h1>
    <label>Name <input name="id" required autofocus pattern="[a-z0-9][a-z0-9\\-]{0,27}" title="up to 28 of a-z, 0-9 and -" /></label>
    <label>Model <input name="model" placeholder="the agent's own" /></label>
    <label>Folder <input name="folder" placeholder="/path/on/the/host, kept in step" /></label>
    <label>Command for each prompt, instead of an agent <input name="command" class="mono" placeholder="reads the prompt from its stdin" /></label>
    <div class="end"><button type="button" onClick=${() => (making.value = false)}>Cancel</button><button class="main">Open</button></div>
  </form>`;
}

const Help = () => html`<h1>Keys</h1>
  <table>
    ${[["j k", "next, previous session"], ["n", "new session"], ["/", "to the prompt"], ["t", "terminal"], ["c", "conversation"], ["p", "all tasks"], ["?", "this"]].map(
      ([key, what]) => html`<tr><td>${key.split(" ").map((each) => html`<kbd>${each}</kbd> `)}</td><td>${what}</td></tr>`,
    )}
  </table>
  <div class="end"><button onClick=${() => (helping.value = false)}>Close</button></div>`;

function Side() {
  const { view, id } = route.value;
  return html`<aside class=${`side ${menu.value ? "open" : ""}`}>
    <header>
      <img src="/static/icon.svg" alt="" /><h1 style="flex: 1">wanixfs</h1>
      <span class="badge" title="events"><span id="link" class=${`dot ${link.value}`} data-link=${link.value}></span></span>
      <button class="narrow" onClick=${() => (menu.value = !menu.value)} aria-expanded=${menu.value}>Sessions</button>
    </header>
    <nav aria-label="Sessions" onClick=${() => (menu.value = false)}>
      ${shown().map(
        (session) => html`<a key=${session.id} class="row" href=${`#/s/${session.id}`} aria-current=${view === "s" && session.id === id ? "page" : undefined}>
          <span class=${`dot ${session.state}`}></span><span class="name">${session.id}</span>
          <span class="small soft">${session.state}</span>
        </a>`,
      )}
      <button class="bare row" onClick=${() => (making.value = true)}>+ new session</button>
    </nav>
    <footer><a href="#/programs">Tasks</a><button class="bare" onClick=${() => (helping.value = true)}>keys</button></footer>
  </aside>`;
}

function View() {
  const { view, id } = route.value;
  if (view === "s") return html`<${SessionView} />`;
  if (view === "p") return html`<${ProgramView} key=${id} />`;
  if (view === "programs") return html`<${Programs} />`;
  if (!loaded.value) return html`<div class="empty">…</div>`;
  return html`<div class="empty"><p>${sessions.value.length ? "Choose a session." : "There are no sessions yet."}</p>
    <button class="main" onClick=${() => (making.value = true)}>New session</button></div>`;
}

const App = () => html`<div class="frame">
  <${Side} />
  <main class="view">
    ${trouble.value && html`<div class="bar"><div class="notice bad" role="alert" style="flex: 1">${trouble.value}</div>
      <button class="bare" onClick=${() => (trouble.value = "")}>close</button></div>`}
    <${View} />
  </main>
  <${Dialog} open=${making}><${NewSession} /></${Dialog}>
  <${Dialog} open=${helping}><${Help} /></${Dialog}>
</div>`;

function step(by) {
  const all = shown(), place = all.findIndex((session) => session.id === detail.value?.id);
  if (all.length) location.hash = `#/s/${all[(place + by + all.length) % all.length].id}`;
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  n: () => (making.value = true),
  "/": () => document.getElementById("prompt")?.focus(),
  t: () => detail.value && (location.hash = `#/s/${detail.value.id}/terminal`),
  c: () => detail.value && (location.hash = `#/s/${detail.value.id}`),
  p: () => (location.hash = "#/programs"),
  "?": () => (helping.value = true),
};
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.id === "prompt") event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, dialog, .terminal")) return;
  if (KEYS[event.key]) event.preventDefault(), KEYS[event.key]();
});

render(html`<${App} />`, document.getElementById("app"));
start();
