// Small pieces that several views share.
import { h } from "preact";
import htm from "htm";
import { useEffect, useRef, useState } from "preact/hooks";
import { readFile } from "./store.js";

export const html = htm.bind(h);

export const State = ({ state }) => html`<span class="badge"><span class=${`dot ${state}`}></span>${state}</span>`;

export const Tabs = ({ base, tab, names }) => html`<nav class="tabs">
  ${names.map(
    ([key, name]) => html`<a href=${`#/${base}${key ? `/${key}` : ""}`} aria-current=${key === tab ? "page" : undefined}>${name}</a>`,
  )}
</nav>`;

export function duration(from, to) {
  const seconds = Math.max(0, (to ?? Date.now() / 1000) - from);
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s` : `${(seconds / 3600).toFixed(1)} h`;
}

export function size(bytes) {
  const power = bytes > 0 ? Math.min(4, Math.floor(Math.log2(bytes) / 10)) : 0;
  return `${(bytes / 1024 ** power).toFixed(power && bytes / 1024 ** power < 10 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** A file of the tree as text, read when it comes into view and on demand. */
export function FileText({ title, path }) {
  const [text, setText] = useState("");
  const read = () => readFile(path).then(setText, (error) => setText(error.message));
  useEffect(() => void read(), [path]);
  return html`<section class="panel">
    <div class="bar"><h2>${title}</h2><button class="bare" onClick=${read}>read again</button></div>
    <pre>${text || "(empty)"}</pre>
  </section>`;
}

const KEPT = 60;

function Plot({ name, points, shown }) {
  const top = Math.max(...points, 1e-9) * 1.15;
  const at = (place) => 100 - ((points.length - 1 - place) / (KEPT - 1)) * 100; // the newest stands at the right
  const path = points.map((value, place) => `${at(place)},${40 - (value / top) * 40}`).join(" ");
  return html`<section class="panel plot">
    <div class="bar"><h2>${name}</h2><span class="mono">${points.length ? shown(points.at(-1)) : "–"}</span></div>
    <svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label=${`${name} over time`}>
      ${points.length > 1 && html`<polygon points=${`${at(0)},40 ${path} 100,40`} /><polyline points=${path} />`}
    </svg>
    <div class="foot small soft"><span>${KEPT} s</span><span>${points.length ? `most: ${shown(Math.max(...points))}` : ""}</span></div>
  </section>`;
}

/** What a task uses, read from its stat files every second while this is in view. */
export function Resources({ task }) {
  const [history, setHistory] = useState({ mem: [], cpu: [], pids: [] });
  const before = useRef(null);
  useEffect(() => {
    const figures = async (what) =>
      Object.fromEntries((await readFile(`/task/${task}/stat/${what}`)).trim().split("\n").map((line) => line.split(" ")));
    const look = async () => {
      try {
        const [mem, cpu, pids] = await Promise.all(["mem", "cpu", "pids"].map(figures));
        const now = performance.now(), used = Number(cpu.user_usec ?? 0) + Number(cpu.system_usec ?? 0);
        const share = before.current ? Math.max(0, (used - before.current.used) / 1000 / (now - before.current.now)) : 0;
        before.current = { now, used };
        const add = (points, value) => [...points, Number(value)].slice(-KEPT);
        setHistory((old) => ({
          mem: add(old.mem, mem.current_bytes ?? 0), cpu: add(old.cpu, share), pids: add(old.pids, pids.current ?? 0),
        }));
      } catch {} // the task is gone, or the server away: the next look tells
    };
    look();
    const timer = setInterval(look, 1000);
    return () => clearInterval(timer);
  }, [task]);
  return html`<div class="plots">
    <${Plot} name="Memory" points=${history.mem} shown=${size} />
    <${Plot} name="Processor" points=${history.cpu} shown=${(value) => `${(value * 100).toFixed(1)} %`} />
    <${Plot} name="Processes" points=${history.pids} shown=${String} />
  </div>`;
}

/** How a task sees the world: its namespace as a script that makes it again, and the place to look around in it. */
export const Namespace = ({ task }) => html`<div class="column">
  <p class="soft small">The namespace of task ${task}, as a script. <a href=${`/fs/task/${task}/ns/root/`} target="_blank">Look around in it</a></p>
  <${FileText} title="ns/dump" path=${`/task/${task}/ns/dump`} />
  <${FileText} title="ns/mounts" path=${`/task/${task}/ns/mounts`} />
</div>`;
