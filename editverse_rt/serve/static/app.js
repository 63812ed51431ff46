// The page of `editverse-rt serve`. It speaks to the native interface, /v1/jobs, of the server that it came from.
import { showComparison } from "/static/compare.js";
import { listHistory, listOlder, markHistory } from "/static/history.js";
import { $, bytes, duration, make, OVER } from "/static/parts.js";
import { api, contentUrl, sendForm } from "/static/server.js";

const PHASES = { read: "Reading the input", encode: "Encoding", denoise: "Denoising", decode: "Decoding", write: "Writing the file" };
const NUMBERS = ["num_inference_steps", "guidance_scale", "num_frames", "strength"];
const MAX_ESTIMATE_BYTES = 16 << 20; // larger inputs are uploaded once only, with the job itself
const SPOKEN_EVERY_MS = 4000;
const FEW = 4, SHORT = 60; // suggestions that are shown at first; letters of a prompt that is easy to read
const page = { models: [], inputs: [], inputsOf: new Map(), job: null, events: null, timer: 0, upload: null, estimating: null, spoken: 0 };

// --- small parts -------------------------------------------------------------------------------------------

const model = () => page.models.find((entry) => entry.id === $("model").value) ?? page.models[0];

/** Say something to screen readers: at once where it matters, else not more often than every few seconds. */
function say(text, atOnce = false) {
  const now = performance.now();
  if (!atOnce && now - page.spoken < SPOKEN_EVERY_MS) return;
  page.spoken = now;
  $("status").textContent = text;
}

function showError(error) {
  if (error instanceof Error) throw error; // a fault of this page, which belongs in the console
  $("error-found").textContent = (error.field ? `${error.field}: ` : "") + error.found;
  const parts = [["Expected", error.expected], ["What to do", error.hint], ["Try again in", error.retryAfter && duration(error.retryAfter)], ["Code", error.code]];
  $("error-parts").replaceChildren(...parts.filter(([, value]) => value).flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", {}, name === "Code" ? make("code", { textContent: value }) : value)]));
  $("error").hidden = false;
  $("error").focus();
  $("error").scrollIntoView({ block: "nearest" });
}

const attempt = (act) => async (event) => { try { await act(event); } catch (error) { showError(error); } };

// --- session -----------------------------------------------------------------------------------------------

async function openSession() {
  const session = await api("/session");
  const isIn = session.name !== null;
  $("login").hidden = isIn;
  $("work").hidden = !isIn;
  $("sign-out").hidden = session.auth !== "key" || !isIn;
  if (!isIn) return $("key").focus();
  page.models = (await api("/v1/models")).data;
  $("model").replaceChildren(...page.models.map((entry) => make("option", { value: entry.id, textContent: entry.id })));
  $("model-row").hidden = page.models.length < 2;
  showModel();
  await Promise.all([listHistory(), openHash()]);
}

async function signIn(event) {
  event.preventDefault();
  try {
    await api("/session", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key: $("key").value }) });
    $("login-error").textContent = "";
  } catch (error) {
    $("login-error").textContent = error.status === 401 ? "This key is not known to the server." : error.found;
    return $("key").select();
  } finally {
    $("key").value = "";
  }
  await openSession();
  $("instruction").focus();
}

// --- inputs ------------------------------------------------------------------------------------------------

function addInput(kind, input) {
  let number = 1;
  while (page.inputs.some((other) => other.name === `${kind}${number}`)) number += 1;
  page.inputs.push({ kind, name: `${kind}${number}`, ...input });
  showInputs();
}

function addFiles(files) {
  for (const file of files) {
    if (!/^(video|image)\//.test(file.type)) {
      showError({ found: `${file.name} is neither a video nor an image`, expected: "a file such as MP4, WebM, GIF, PNG or JPEG", code: "page.file" });
      continue;
    }
    const kind = file.type.startsWith("video/") || file.type === "image/gif" ? "video" : "image";
    addInput(kind, { file, label: `${file.name}, ${bytes(file.size)}`, url: URL.createObjectURL(file), isMoving: file.type.startsWith("video/") });
  }
}

function showInputs() {
  $("inputs").replaceChildren(...page.inputs.map((input) => {
    const tag = make("button", { type: "button", className: "tag", textContent: `<${input.name}>` });
    tag.setAttribute("aria-label", `Insert <${input.name}> into the instruction`);
    tag.onclick = () => { insertText(`<${input.name}>`); };
    const remove = make("button", { type: "button", className: "quiet", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove ${input.name}`);
    remove.onclick = () => {
      page.inputs = page.inputs.filter((other) => other !== input);
      showInputs();
      $("files").focus();
    };
    const still = input.isMoving ? make("video", { src: `${input.url}#t=0.01`, muted: true, preload: "metadata" }) : make("img", { src: input.url, alt: "" });
    still.setAttribute("aria-hidden", "true");
    return make("li", {}, still, tag, remove, make("span", { className: "name", textContent: input.label, title: input.label }));
  }));
  const isEdit = page.inputs.length > 0;
  $("submit").textContent = isEdit ? "Edit" : "Generate";
  $("num_frames").placeholder = isEdit ? "as the input" : String(model().geometry.default_frames);
  $("size").placeholder = isEdit ? "as the input" : `${model().geometry.default_width_px}x${model().geometry.default_height_px}`;
  showSuggestions();
  estimateSoon();
}

function insertText(text) {
  const field = $("instruction");
  const before = field.value.slice(0, field.selectionStart), after = field.value.slice(field.selectionEnd);
  const spaced = `${before && !/\s$/.test(before) ? " " : ""}${text}${/^\s/.test(after) ? "" : " "}`;
  field.setRangeText(spaced, field.selectionStart, field.selectionEnd, "end");
  field.focus();
}

/** Prompts of the model's own tests that take exactly the inputs that are there. */
function showSuggestions() {
  const names = page.inputs.map((input) => input.name).sort().join();
  const fits = model().suggestions.filter((one) => [...one.inputs].sort().join() === names);
  fits.sort((one, other) => (one.prompt.length > SHORT) - (other.prompt.length > SHORT));
  $("suggestions").hidden = fits.length === 0;
  $("suggestions").querySelector("ul").replaceChildren(...fits.map((one) => {
    const button = make("button", { type: "button", title: one.task.replaceAll("_", " ") }, one.prompt);
    if (one.success_rate != null) button.append(make("b", { textContent: `${Math.round(100 * one.success_rate)} %` }));
    button.onclick = () => { $("instruction").value = one.prompt; $("instruction").focus(); };
    return make("li", {}, button);
  }));
  showMore(false);
}

function showMore(isAll) {
  const chips = [...$("suggestions").querySelectorAll("li")];
  for (const chip of chips.slice(FEW)) chip.hidden = !isAll;
  $("more").hidden = isAll || chips.length <= FEW;
  if (isAll) chips[FEW].firstChild.focus();
}

// --- the model, and what a request would cost ---------------------------------------------------------------

const stepsOf = (count) => `${count} step${count === 1 ? "" : "s"}`;

function showModel() {
  const { id, devices, schedules, capabilities, geometry } = model();
  $("about").textContent = `${id} on ${devices.join(", ")}`;
  $("schedules").replaceChildren(make("legend", { textContent: "Schedule" }), ...schedules.map((one) => make("label", {},
    make("input", { type: "radio", name: "schedule", value: one.name, checked: one.default }), one.name,
    make("span", { className: "cost", textContent: stepsOf(one.num_inference_steps) }))));
  for (const field of document.querySelectorAll("[data-needs]")) field.hidden = !capabilities[field.dataset.needs];
  $("num_frames").max = geometry.max_frames;
  showSchedule();
  showInputs();
}

function showSchedule() {
  const chosen = model().schedules.find((one) => one.name === document.forms.edit.schedule.value);
  $("num_inference_steps").placeholder = chosen.num_inference_steps;
  $("guidance_scale").placeholder = chosen.guidance_scale;
}

function formData(changes) {
  const request = { prompt: $("instruction").value.trim(), schedule: document.forms.edit.schedule.value };
  for (const name of NUMBERS) if ($(name).value !== "" && !$(name).closest("[hidden]")) request[name] = Number($(name).value);
  for (const name of ["size", "negative_prompt"]) if ($(name).value.trim() && !$(name).closest("[hidden]")) request[name] = $(name).value.trim();
  const form = new FormData();
  for (const input of page.inputs) {
    if (input.file) form.append(input.name, input.file);
    else request.inputs = { ...request.inputs, [input.name]: { job: input.job, variant: input.variant } };
  }
  form.append("request", JSON.stringify({ ...request, ...changes }));
  form.append("model", model().id);
  if ($("format").value) form.append("format", $("format").value);
  return form;
}

function estimateSoon() {
  stopEstimating();
  page.estimateTimer = setTimeout(estimate, 500);
}

function stopEstimating() {
  clearTimeout(page.estimateTimer);
  page.estimating?.abort();
}

/** A dry run a schedule. Where one is refused, submitting says why; the steps stand there meanwhile. */
async function estimate() {
  stopEstimating();
  const { signal } = page.estimating = new AbortController();
  const size = page.inputs.reduce((sum, input) => sum + (input.file?.size ?? 0), 0);
  for (const { name, num_inference_steps } of model().schedules) {
    let text = stepsOf(num_inference_steps);
    try {
      if (size <= MAX_ESTIMATE_BYTES) {
        const plan = await api("/v1/jobs?dry_run=1", { method: "POST", signal, body: formData({ prompt: "edit", schedule: name }) });
        text = stepsOf(plan.num_inference_steps);
        if (plan.seconds != null) text += `, about ${duration(plan.seconds)}`;
        if (plan.wait_s > 1) text += ` after ${duration(plan.wait_s)} in the queue`;
      }
    } catch { /* said on submitting */ }
    if (signal.aborted) return;
    const radio = document.querySelector(`#schedules input[value="${CSS.escape(name)}"]`);
    if (radio) radio.parentElement.querySelector(".cost").textContent = text;
  }
}

// --- submitting --------------------------------------------------------------------------------------------

function seed() {
  if (document.forms.edit["seed-kind"].value === "new" || $("seed").value === "") $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  return Number($("seed").value);
}

async function submit(event) {
  event.preventDefault();
  $("error").hidden = true;
  stopEstimating();
  const form = formData({ seed: seed() });
  const inputs = [...page.inputs];
  $("submit").disabled = true;
  try {
    const { sending, job: sent } = sendForm(form, showUpload);
    page.upload = sending;
    const job = await sent;
    if (job === null) return say("The upload was stopped.", true);
    page.inputsOf.set(job.id, inputs);
    location.hash = `job=${job.id}`;
    $("view").scrollIntoView({ block: "nearest" });
    await listHistory();
  } finally {
    $("submit").disabled = false;
    $("upload").hidden = $("stop-upload").hidden = true;
    estimateSoon();
  }
}

function showUpload(loaded, total) {
  $("upload").hidden = $("stop-upload").hidden = false;
  $("upload-bar").value = loaded / total;
  $("upload-text").textContent = loaded < total ? `${bytes(loaded)} of ${bytes(total)}` : "done; the server is checking it";
}

// --- one job -----------------------------------------------------------------------------------------------

async function openHash() {
  const id = /^#job=([\w-]+)$/.exec(location.hash)?.[1];
  stopFollowing();
  page.job = null;
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
  page.events?.close();
  page.events = null;
  clearTimeout(page.timer);
  document.title = "EditVerse";
}

/** Server-sent events; where they fail, asking again and again. */
function follow(id) {
  const events = page.events = new EventSource(`/v1/jobs/${id}/events`);
  events.addEventListener("job", (event) => { if (page.events === events) showJob(JSON.parse(event.data)); });
  events.onerror = () => {
    events.close();
    if (page.events === events) poll(id, 500);
  };
}

function poll(id, wait_ms) {
  page.timer = setTimeout(async () => {
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
  return (PHASES[job.phase] ?? "Starting") + step + left;
}

function showJob(job) {
  const before = page.job, isOver = OVER.has(job.state);
  page.job = job;
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

function useAsInput() {
  const { id, result } = page.job;
  const kind = result.num_frames > 1 ? "video" : "image";
  addInput(kind, { job: id, variant: "result", label: "an earlier result", url: contentUrl(id, "result"), isMoving: result.type.startsWith("video/") });
  $("instruction").value = "";
  $("instruction").focus();
}

/** Put the job's request into the form. Uploads are there while this page is; later, the source that the server kept. */
function editAgain() {
  const { id, model: name, request, result, format } = page.job;
  $("model").value = name;
  page.inputs = page.inputsOf.get(id) ?? [];
  showModel();
  if (!page.inputsOf.has(id)) {
    for (const [tag, from] of Object.entries(request.inputs ?? {})) {
      const kind = tag.replace(/\d+$/, "");
      const source = from.job ? { job: from.job, variant: from.variant ?? "result" } : { job: id, variant: "source" };
      if (from.job || (result?.has_source && Object.keys(request.inputs).length === 1)) {
        page.inputs.push({ kind, name: tag, ...source, label: "an earlier file", url: contentUrl(source.job, source.variant), isMoving: kind === "video" });
      } else say(`Add the file for ${tag} again.`, true);
    }
    showInputs();
  }
  $("instruction").value = request.prompt;
  for (const field of [...NUMBERS, "size", "negative_prompt"]) $(field).value = request[field] ?? "";
  const radio = document.querySelector(`#schedules input[value="${CSS.escape(request.schedule ?? "")}"]`);
  if (radio) radio.checked = true;
  $("format").value = [...$("format").options].some((option) => option.value === format) ? format : "";
  document.forms.edit["seed-kind"].value = "again";
  $("seed").hidden = false;
  $("seed").value = request.seed ?? 0;
  showSchedule();
  $("instruction").focus();
}

async function copyRecipe() {
  const text = JSON.stringify(await api(`/v1/jobs/${page.job.id}/recipe`));
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

// --- what the page listens to ------------------------------------------------------------------------------

const onClick = (id, act) => { $(id).onclick = attempt(act); };
$("login-form").onsubmit = attempt(signIn);
$("edit").onsubmit = attempt(submit);
onClick("sign-out", async () => { await api("/session", { method: "DELETE" }); location.reload(); });
onClick("stop-upload", () => page.upload.abort());
onClick("cancel", async () => { $("cancel").disabled = true; $("bar-text").textContent = "Cancelling"; showJob(await api(`/v1/jobs/${page.job.id}/cancel`, { method: "POST" })); });
onClick("remove", async () => { await api(`/v1/jobs/${page.job.id}`, { method: "DELETE" }); location.hash = ""; await listHistory(); });
onClick("use", useAsInput);
onClick("again", editAgain);
onClick("recipe", copyRecipe);
onClick("older", listOlder);
onClick("more", () => showMore(true));
onClick("error-close", () => { $("error").hidden = true; $("view-title").focus(); });
$("model").onchange = showModel;
$("schedules").onchange = showSchedule;
for (const field of document.querySelectorAll("details input, #format")) field.addEventListener("change", estimateSoon);
for (const radio of document.forms.edit["seed-kind"]) radio.onchange = () => { $("seed").hidden = radio.value === "new"; };
$("files").onchange = () => { addFiles($("files").files); $("files").value = ""; };
$("instruction").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("edit").requestSubmit(); };
document.querySelector(".skip").onclick = (event) => { event.preventDefault(); $("instruction").focus(); };
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("is-over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("is-over"); });
document.addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("is-over"); if (!$("work").hidden) addFiles(event.dataTransfer.files); });
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length && !$("work").hidden) { event.preventDefault(); addFiles(event.clipboardData.files); } });
document.addEventListener("signed-out", attempt(openSession));
window.addEventListener("hashchange", attempt(openHash));
attempt(openSession)();
