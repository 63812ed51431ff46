// The page of `editverse-rt serve`. It speaks to the native interface, /v1/jobs, of the server that it came from.
import { estimateSoon, stopEstimating } from "/static/estimate.js";
import { fillForm, formData, seed, setModels, showModel, showMore, showNeeds, showSchedule } from "/static/form.js";
import { listHistory, listOlder } from "/static/history.js";
import { addFiles, addInput, allInputs, setInputs } from "/static/inputs.js";
import { cancelJob, copyRecipe, currentJob, openHash, removeJob } from "/static/job.js";
import { $, bytes } from "/static/parts.js";
import { attempt, say } from "/static/saying.js";
import { api, contentUrl, sendForm } from "/static/server.js";

const inputsOf = new Map(); // of the jobs that this page has submitted
let upload = null;

// --- session -----------------------------------------------------------------------------------------------

async function openSession() {
  const session = await api("/session");
  const isIn = session.name !== null;
  $("login").hidden = isIn;
  $("sign-out").hidden = session.auth !== "key" || !isIn;
  if (isIn) setModels((await api("/v1/models")).data);
  $("work").hidden = !isIn; // only with its models, which the form needs at the first input
  if (!isIn) return $("key").focus();
  estimateSoon();
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

// --- submitting --------------------------------------------------------------------------------------------

async function submit(event) {
  event.preventDefault();
  $("error").hidden = true;
  stopEstimating();
  const form = formData({ seed: seed() });
  const inputs = [...allInputs()];
  $("submit").disabled = true;
  try {
    const { sending, job: sent } = sendForm(form, showUpload);
    upload = sending;
    const job = await sent;
    if (job === null) return say("The upload was stopped.", true);
    inputsOf.set(job.id, inputs);
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

// --- again, from an earlier job ----------------------------------------------------------------------------

function useAsInput() {
  const { id, result } = currentJob();
  const kind = result.num_frames > 1 ? "video" : "image";
  addInput(kind, { job: id, variant: "result", label: "an earlier result", url: contentUrl(id, "result"), isMoving: result.type.startsWith("video/") });
  $("instruction").value = "";
  $("instruction").focus();
}

/** Put the job's request into the form. Uploads are there while this page is; later, the source that the server kept. */
function editAgain() {
  const { id, model: name, request, result, format } = currentJob();
  $("model").value = name;
  const inputs = [...(inputsOf.get(id) ?? [])];
  if (!inputsOf.has(id)) {
    for (const [tag, from] of Object.entries(request.inputs ?? {})) {
      const kind = tag.replace(/\d+$/, "");
      const source = from.job ? { job: from.job, variant: from.variant ?? "result" } : { job: id, variant: "source" };
      if (from.job || (result?.has_source && Object.keys(request.inputs).length === 1)) {
        inputs.push({ kind, name: tag, ...source, label: "an earlier file", url: contentUrl(source.job, source.variant), isMoving: kind === "video" });
      } else say(`Add the file for ${tag} again.`, true);
    }
  }
  setInputs(inputs);
  showModel();
  fillForm(request, format);
}

// --- what the page listens to ------------------------------------------------------------------------------

const onClick = (id, act) => { $(id).onclick = attempt(act); };
$("login-form").onsubmit = attempt(signIn);
$("edit").onsubmit = attempt(submit);
onClick("sign-out", async () => { await api("/session", { method: "DELETE" }); location.reload(); });
onClick("stop-upload", () => upload.abort());
onClick("cancel", cancelJob);
onClick("remove", removeJob);
onClick("use", useAsInput);
onClick("again", editAgain);
onClick("recipe", copyRecipe);
onClick("older", listOlder);
onClick("more", () => showMore(true));
onClick("error-close", () => { $("error").hidden = true; $("view-title").focus(); });
$("model").onchange = () => { showModel(); estimateSoon(); };
document.addEventListener("inputs-changed", () => { showNeeds(); estimateSoon(); });
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
