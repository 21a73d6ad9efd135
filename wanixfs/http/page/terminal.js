// A terminal on a task's pty. xterm.js is fetched when the first one is opened.
import { useEffect, useRef } from "preact/hooks";
import { html } from "./parts.js";
import { ask, follow, trouble } from "./store.js";

let modules;

function load() {
  modules ??= Promise.all([import("/static/vendor/xterm.js"), import("/static/vendor/addon-fit.js"), style("/static/vendor/xterm.css")]);
  return modules;
}

function style(href) {
  return new Promise((done, failed) => {
    const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href, onload: done, onerror: failed });
    document.head.append(link);
  });
}

/** Sends what is typed in order, and together what was typed while the last was on its way. */
function typist(task) {
  const encoder = new TextEncoder();
  let waiting = "", sending = false;
  return async function type(text) {
    waiting += text;
    if (sending) return;
    sending = true;
    try {
      while (waiting) {
        const data = encoder.encode(waiting);
        waiting = "";
        await ask("POST", `/api/programs/${task}/input`, data);
      }
    } catch (error) {
      trouble.value = error.message;
    } finally {
      sending = false;
    }
  };
}

export function TerminalView({ task }) {
  const place = useRef();
  useEffect(() => {
    const ended = new AbortController();
    let terminal, watcher;
    (async () => {
      const [{ Terminal }, { FitAddon }] = await load();
      if (ended.signal.aborted) return;
      terminal = new Terminal({ cursorBlink: true, fontSize: 13, scrollback: 10000, theme: { background: "#14181a" } });
      const fit = new FitAddon();
      terminal.loadAddon(fit);
      terminal.open(place.current);
      const resized = () => {
        fit.fit();
        const { rows, cols: columns } = terminal;
        ask("PUT", `/api/programs/${task}/size`, { rows, columns }).catch(() => {}); // it has ended
      };
      resized();
      watcher = new ResizeObserver(resized);
      watcher.observe(place.current);
      const type = typist(task);
      terminal.onData(type);
      terminal.focus();
      await follow(`/task/${task}/fd/1`, (bytes) => terminal.write(bytes), ended.signal);
      if (!ended.signal.aborted) terminal.write("\r\n\x1b[2m[ended]\x1b[0m\r\n");
    })();
    return () => (ended.abort(), watcher?.disconnect(), terminal?.dispose());
  }, [task]);
  return html`<div class="terminal" ref=${place}></div>`;
}
