// The tasks of the tree as programs: all of them, and one.
import { duration, FileText, html, Namespace, Resources, State, Tabs } from "./parts.js";
import { attempt, route, useTasks } from "./store.js";
import { TerminalView } from "./terminal.js";

export function Programs() {
  const tasks = useTasks("/api/programs");
  return html`<div class="bar"><h1>Tasks</h1><a href="/fs/" target="_blank">the tree</a></div>
    <div class="scroll"><div class="panel">
      <table>
        <tr><th>id</th><th>state</th><th>command</th><th class="wide">user</th><th class="wide">type</th><th class="wide">time</th></tr>
        ${[...(Array.isArray(tasks) ? tasks : [])].reverse().map(
          (task) => html`<tr key=${task.id}>
            <td><a href=${`#/p/${task.id}`}>${task.id}</a></td>
            <td><${State} state=${task.status} />${task.exitcode ? ` ${task.exitcode}` : ""}</td>
            <td class="mono">${task.argv.join(" ").slice(0, 120)}</td>
            <td class="wide">${task.user}</td><td class="wide">${task.type}</td>
            <td class="wide">${task.started ? duration(task.started, task.exited) : ""}</td>
          </tr>`,
        )}
      </table>
      ${Array.isArray(tasks) && tasks.length === 0 && html`<p class="soft">There are no tasks.</p>`}
    </div></div>`;
}

export function ProgramView() {
  const { id, tab } = route.value;
  const task = useTasks(`/api/programs/${id}`);
  if (!task) return html`<div class="empty">…</div>`;
  if (task.missing) return html`<div class="empty">There is no task ${id}.</div>`;
  const names = [["", task.pty ? "Terminal" : "Output"], ["namespace", "Namespace"], ["resources", "Resources"]];
  return html`
    <div class="bar">
      <h1 class="mono">${task.argv.join(" ") || `task ${id}`}</h1>
      <${State} state=${task.status} />
      ${task.exitcode !== null && html`<span class="soft">exit code ${task.exitcode}</span>`}
      <button disabled=${task.status !== "running"} onClick=${() => attempt("POST", `/api/programs/${id}/kill`, {})}>End</button>
    </div>
    <${Tabs} base=${`p/${id}`} tab=${tab} names=${names} />
    ${tab === "" && (task.pty
      ? html`<${TerminalView} task=${id} />`
      : html`<div class="scroll"><div class="column">
          <${FileText} title="fd/1" path=${`/task/${id}/fd/1?wait=0`} /><${FileText} title="fd/2" path=${`/task/${id}/fd/2?wait=0`} />
        </div></div>`)}
    ${tab === "namespace" && html`<div class="scroll"><${Namespace} task=${id} /></div>`}
    ${tab === "resources" && html`<div class="scroll"><${Resources} task=${id} /></div>`}
  `;
}
