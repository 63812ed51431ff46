// The form: the models to choose from, what each suggests and takes, and the request that the fields make.
import { allInputs } from "/static/inputs.js";
import { $, make } from "/static/parts.js";

const NUMBERS = ["num_inference_steps", "guidance_scale", "num_frames", "strength"];
const TEXTS = ["size", "negative_prompt"];
const FEW = 4, SHORT = 60; // suggestions that are shown at first; letters of a prompt that is easy to read
let models = [];

export const model = () => models.find((entry) => entry.id === $("model").value) ?? models[0];
export const stepsOf = (count) => `${count} step${count === 1 ? "" : "s"}`;

export function setModels(found) {
  models = found;
  $("model").replaceChildren(...models.map((entry) => make("option", { value: entry.id, textContent: entry.id })));
  $("model-row").hidden = models.length < 2;
  showModel();
}

export function showModel() {
  const { id, devices, schedules, capabilities, geometry } = model();
  $("about").textContent = `${id} on ${devices.join(", ")}`;
  $("schedules").replaceChildren(make("legend", { textContent: "Schedule" }), ...schedules.map((one) => make("label", {},
    make("input", { type: "radio", name: "schedule", value: one.name, checked: one.default }), one.name,
    make("span", { className: "cost", textContent: stepsOf(one.num_inference_steps) }))));
  for (const field of document.querySelectorAll("[data-needs]")) field.hidden = !capabilities[field.dataset.needs];
  $("num_frames").max = geometry.shared_frames ? "" : geometry.max_frames; // longer ones are done in parts
  showSchedule();
  showNeeds();
}

export function showSchedule() {
  const chosen = model().schedules.find((one) => one.name === document.forms.edit.schedule.value);
  $("num_inference_steps").placeholder = chosen.num_inference_steps;
  $("guidance_scale").placeholder = chosen.guidance_scale;
}

/** What depends on whether there are inputs, and on which. */
export function showNeeds() {
  const isEdit = allInputs().length > 0;
  $("submit").textContent = isEdit ? "Edit" : "Generate";
  $("num_frames").placeholder = isEdit ? "as the input" : String(model().geometry.default_frames);
  $("size").placeholder = isEdit ? "as the input" : `${model().geometry.default_width_px}x${model().geometry.default_height_px}`;
  showSuggestions();
}

/** Prompts of the model's own tests that take exactly the inputs that are there. */
function showSuggestions() {
  const names = allInputs().map((input) => input.name).sort().join();
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

export function showMore(isAll) {
  const chips = [...$("suggestions").querySelectorAll("li")];
  for (const chip of chips.slice(FEW)) chip.hidden = !isAll;
  $("more").hidden = isAll || chips.length <= FEW;
  if (isAll) chips[FEW].firstChild.focus();
}

/** The form to send. changes: of the request. */
export function formData(changes) {
  const request = { prompt: $("instruction").value.trim(), schedule: document.forms.edit.schedule.value };
  for (const name of NUMBERS) if ($(name).value !== "" && !$(name).closest("[hidden]")) request[name] = Number($(name).value);
  for (const name of TEXTS) if ($(name).value.trim() && !$(name).closest("[hidden]")) request[name] = $(name).value.trim();
  const form = new FormData();
  for (const input of allInputs()) {
    if (input.file) form.append(input.name, input.file);
    else request.inputs = { ...request.inputs, [input.name]: { job: input.job, variant: input.variant } };
  }
  form.append("request", JSON.stringify({ ...request, ...changes }));
  form.append("model", model().id);
  if ($("format").value) form.append("format", $("format").value);
  return form;
}

/** The seed that is asked for; it stands in its field afterwards. */
export function seed() {
  if (document.forms.edit["seed-kind"].value === "new" || $("seed").value === "") $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  return Number($("seed").value);
}

/** Put a request into the fields, but for its inputs. */
export function fillForm(request, format) {
  $("instruction").value = request.prompt;
  for (const field of [...NUMBERS, ...TEXTS]) $(field).value = request[field] ?? "";
  const radio = document.querySelector(`#schedules input[value="${CSS.escape(request.schedule ?? "")}"]`);
  if (radio) radio.checked = true;
  $("format").value = [...$("format").options].some((option) => option.value === format) ? format : "";
  document.forms.edit["seed-kind"].value = "again";
  $("seed").hidden = false;
  $("seed").value = request.seed ?? 0;
  showSchedule();
  $("instruction").focus();
}
