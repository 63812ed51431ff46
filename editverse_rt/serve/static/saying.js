// What the page says: to screen readers, and where something has gone wrong.
import { $, duration, make } from "/static/parts.js";

const SPOKEN_EVERY_MS = 4000;
let spoken_ms = 0;

/** Say something to screen readers: at once where it matters, else not more often than every few seconds. */
export function say(text, atOnce = false) {
  const now = performance.now();
  if (!atOnce && now - spoken_ms < SPOKEN_EVERY_MS) return;
  spoken_ms = now;
  $("status").textContent = text;
}

export function showError(error) {
  if (error instanceof Error) throw error; // a fault of this page, which belongs in the console
  $("error-found").textContent = (error.field ? `${error.field}: ` : "") + error.found;
  const parts = [["Expected", error.expected], ["What to do", error.hint], ["Try again in", error.retryAfter && duration(error.retryAfter)], ["Code", error.code]];
  $("error-parts").replaceChildren(...parts.filter(([, value]) => value).flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", {}, name === "Code" ? make("code", { textContent: value }) : value)]));
  $("error").hidden = false;
  $("error").focus();
  $("error").scrollIntoView({ block: "nearest" });
}

/** A listener that shows the problem which its act throws. */
export const attempt = (act) => async (event) => { try { await act(event); } catch (error) { showError(error); } };
