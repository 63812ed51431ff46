// What a request would cost: a dry run a schedule, while the form changes.
import { formData, model, stepsOf } from "/static/form.js";
import { allInputs } from "/static/inputs.js";
import { duration } from "/static/parts.js";
import { api } from "/static/server.js";

const MAX_ESTIMATE_BYTES = 16 << 20; // larger inputs are uploaded once only, with the job itself
const PAUSE_MS = 500;
let timer = 0, running = null;

export function estimateSoon() {
  stopEstimating();
  timer = setTimeout(estimate, PAUSE_MS);
}

export function stopEstimating() {
  clearTimeout(timer);
  running?.abort();
}

/** A dry run a schedule. Where one is refused, submitting says why; the steps stand there meanwhile. */
async function estimate() {
  stopEstimating();
  const { signal } = running = new AbortController();
  const size = allInputs().reduce((sum, input) => sum + (input.file?.size ?? 0), 0);
  for (const { name, num_inference_steps } of model().schedules) {
    let text = stepsOf(num_inference_steps);
    try {
      if (size <= MAX_ESTIMATE_BYTES) {
        const found = await api("/v1/jobs?dry_run=1", { method: "POST", signal, body: formData({ prompt: "edit", schedule: name }) });
        text = stepsOf(found.num_inference_steps);
        if (found.seconds != null) text += `, about ${duration(found.seconds)}`;
        if (found.wait_s > 1) text += ` after ${duration(found.wait_s)} in the queue`;
      }
    } catch { /* said on submitting */ }
    if (signal.aborted) return;
    const radio = document.querySelector(`#schedules input[value="${CSS.escape(name)}"]`);
    if (radio) radio.parentElement.querySelector(".cost").textContent = text;
  }
}
