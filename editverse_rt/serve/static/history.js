// The jobs that the server keeps, newest first.
import { api, contentUrl } from "/static/server.js";
import { $, make, OVER } from "/static/parts.js";

const state = { last: null, timer: 0 };

function entryOf(job) {
  const still = make("div", { className: "still" });
  if (job.result) {
    const url = contentUrl(job.id, "result");
    still.append(job.result.type.startsWith("video/") ? make("video", { src: `${url}#t=0.01`, muted: true, preload: "metadata", tabIndex: -1 }) : make("img", { src: url, alt: "", loading: "lazy" }));
    still.setAttribute("aria-hidden", "true");
  } else still.textContent = job.state.replace("_", " ");
  const when = make("time", { className: "when", textContent: new Date(1000 * job.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) });
  const what = make("span", { className: "what", textContent: job.request.prompt });
  if (job.state === "failed") still.classList.add("failed");
  const link = make("a", { href: `#job=${job.id}` }, still, what, when);
  return make("li", {}, link);
}

export async function listHistory() {
  const { data, has_more } = await api("/v1/jobs?limit=12");
  $("history").replaceChildren(...data.map(entryOf));
  showEndOfHistory(data, has_more);
}

export async function listOlder() {
  const { data, has_more } = await api(`/v1/jobs?limit=12&after=${state.last}`);
  $("history").append(...data.map(entryOf));
  showEndOfHistory(data, has_more);
}

function showEndOfHistory(data, hasMore) {
  state.last = data.at(-1)?.id ?? state.last;
  $("older").hidden = !hasMore;
  $("past-empty").hidden = $("history").childElementCount > 0;
  markHistory();
  clearTimeout(state.timer);
  if (data.some((job) => !OVER.has(job.state))) state.timer = setTimeout(refreshHistory, 5000);
}

/** While jobs are under way; not while an entry has the focus, which would be lost. */
function refreshHistory() {
  if (document.hidden || $("history").contains(document.activeElement)) state.timer = setTimeout(refreshHistory, 5000);
  else listHistory().catch(() => { state.timer = setTimeout(refreshHistory, 5000); });
}

export function markHistory() {
  for (const link of $("history").querySelectorAll("a")) {
    if (link.hash === location.hash) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }
}
