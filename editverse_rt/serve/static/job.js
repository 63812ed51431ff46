// One job, that of the address: followed while it runs, then its result.
import { showComparison } from "/static/compare.js";
import { estimateSoon } from "/static/estimate.js";
import { listHistory, markHistory } from "/static/history.js";
import { $, bytes, duration, make, OVER } from "/static/parts.js";
import { attempt, say, showError } from "/static/saying.js";
import { api, contentUrl } from "/static/server.js";

const PHASES = { read: "Reading the input", encode: "Encoding", denoise: "Denoising", decode: "Decoding", write: "Writing the file" };
let shown = null, stream = null, timer = 0;

/** The job that is shown. */
export const currentJob = () => shown;

export async function openHash() {
  const id = /^#job=([\w-]+)$/.exec(location.hash)?.[1];
  stopFollowing();
  shown = null;
  $("error").hidden = true;
  $("job").hidden = true;
  $("empty").hidden = Boolean(id);
  markHistory();
  if (!id) return;
  const job = await api(`/v1/jobs/${id}`);
  if (!location.hash.endsWith(id)) return;
  showJob(job);
  if (!OVER.has(job.state)) follow(id);
}

function stopFollowing() {
  stream?.close();
  stream = null;
  clearTimeout(timer);
  document.title = "EditVerse";
}

/** Server-sent events; where they fail, asking again and again. */
function follow(id) {
  const events = stream = new EventSource(`/v1/jobs/${id}/events`);
  events.addEventListener("job", (event) => { if (stream === events) showJob(JSON.parse(event.data)); });
  events.onerror = () => {
    events.close();
    if (stream === events) poll(id, 500);
  };
}

function poll(id, wait_ms) {
  timer = setTimeout(async () => {
    let job = null;
    try { job = await api(`/v1/jobs/${id}`); } catch (error) {
      if (error.status === 404) { stopFollowing(); return showError(error); }
      $("bar-text").textContent = "The server does not answer; trying again";
    }
    if (!location.hash.endsWith(id)) return;
    if (job) showJob(job);
    if (!job || !OVER.has(job.state)) poll(id, Math.min(1.5 * wait_ms, 5000));
  }, wait_ms);
}

function progressText(job) {
  if (job.is_cancelling) return "Cancelling";
  const left = job.eta_s == null ? "" : `, about ${duration(job.eta_s)} left`;
  if (job.state === "queued") return `In the queue${job.queue_position ? `, ${job.queue_position} ahead` : ""}${left}`;
  const step = job.phase === "denoise" ? `, step ${Math.min(job.step + 1, job.num_steps)} of ${job.num_steps}` : "";
  const part = job.num_windows > 1 && job.phase ? `, part ${Math.min(job.window + 1, job.num_windows)} of ${job.num_windows}` : "";
  return (PHASES[job.phase] ?? "Starting") + step + part + left;
}

function showJob(job) {
  const before = shown, isOver = OVER.has(job.state);
  shown = job;
  $("empty").hidden = true;
  $("job").hidden = false;
  $("job-prompt").textContent = job.request.prompt;
  $("running").hidden = isOver;
  for (const name of ["finished", "download", "use"]) $(name).hidden = job.state !== "completed";
  $("remove").hidden = !isOver;
  if (!isOver) {
    const text = progressText(job);
    if (job.state === "queued") $("bar").removeAttribute("value"); else $("bar").value = job.progress;
    $("bar-text").textContent = text;
    $("cancel").disabled = Boolean(job.is_cancelling);
    document.title = job.state === "queued" ? "Queued - EditVerse" : `${Math.round(100 * job.progress)} % - EditVerse`;
    return say(text, job.phase !== before?.phase);
  }
  if (before?.id === job.id && before.state === job.state) return;
  stopFollowing();
  const wasWatched = before?.id === job.id;
  if (job.state === "completed") showResult(job);
  if (job.state === "completed" && wasWatched) {
    const at = document.activeElement;
    if (at === document.body || at === $("submit") || $("view").contains(at)) $("view-title").focus();
  }
  if (job.error) showError(job.error);
  else if (job.state !== "completed") showError({ found: job.state === "cancelled" ? "this job was cancelled" : "the files of this job have expired", hint: "with Reuse settings, its request goes back into the form", code: job.state });
  say({ completed: "The result is there.", failed: "The job has failed.", cancelled: "The job was cancelled." }[job.state] ?? job.state, true);
  if (wasWatched) { attempt(listHistory)(); estimateSoon(); }
}

function showResult(job) {
  const { result } = job;
  showComparison($("stage"), $("wipe"), $("play"), {
    result: contentUrl(job.id, "result"), source: result.has_source ? contentUrl(job.id, "source") : null,
    isMoving: result.type.startsWith("video/"), isSourceMoving: result.num_frames > 1, isSmall: result.width < 256, ratio: result.width / result.height,
    onFail: () => showError({ found: `this browser cannot show ${result.type}`, hint: "download the file", code: "page.media" }),
  });
  $("controls").hidden = !result.has_source && !result.type.startsWith("video/");
  for (const name of ["wipe", "left", "right"]) $(name).hidden = !result.has_source;
  const took = job.finished_at - job.started_at;
  $("facts").textContent = [`${result.width} × ${result.height}`, result.num_frames > 1 && `${result.num_frames} frames, ${Number(result.fps.toFixed(2))} a second`,
    bytes(result.bytes), `seed ${job.request.seed ?? 0}`, job.request.schedule, took > 0 && `made in ${duration(took)}`].filter(Boolean).join(" · ");
  $("notices").replaceChildren(...job.notices.map((text) => make("li", { textContent: text })));
  $("download").href = contentUrl(job.id, "result", "&download=1");
}

export async function cancelJob() {
  $("cancel").disabled = true;
  $("bar-text").textContent = "Cancelling";
  showJob(await api(`/v1/jobs/${shown.id}/cancel`, { method: "POST" }));
}

export async function removeJob() {
  await api(`/v1/jobs/${shown.id}`, { method: "DELETE" });
  location.hash = "";
  await listHistory();
}

export async function copyRecipe() {
  const text = JSON.stringify(await api(`/v1/jobs/${shown.id}/recipe`));
  try { await navigator.clipboard.writeText(text); } catch { // there is no clipboard without https, but for localhost
    const field = make("textarea", { value: text });
    $("job").append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  $("recipe").textContent = "Copied";
  setTimeout(() => { $("recipe").textContent = "Copy recipe"; }, 2000);
  say("The recipe was copied.", true);
}
