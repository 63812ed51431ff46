// What the page asks of its server, and what comes back: JSON, or a problem with found, expected, hint and code.

export const contentUrl = (id, variant, more = "") => `/v1/jobs/${id}/content?variant=${variant}${more}`;

function problemFrom(status, text, retryAfter, path) {
  if (status === 401 && path !== "/session") document.dispatchEvent(new Event("signed-out"));
  let error = {};
  try { error = JSON.parse(text).error ?? {}; } catch { /* not the server's own answer: a proxy's, say */ }
  return { status, retryAfter, found: `the server answered with status ${status}`, code: `http.${status}`, ...error };
}

const UNREACHABLE = { status: 0, found: "the server cannot be reached", hint: "check that it is running, then try again", code: "page.network" };

/** JSON of an answer. Throws a problem; one of a session that has ended is told to the document as well. */
export async function api(path, options = {}) {
  let answer;
  try { answer = await fetch(path, options); } catch { throw UNREACHABLE; }
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  throw problemFrom(answer.status, text, answer.headers.get("Retry-After"), path);
}

/** Submit a form as a job. onProgress: is told the bytes that are sent, and all. Gives the request, and a promise of the
 * job, or of null where the request was aborted. */
export function sendForm(form, onProgress) {
  const sending = new XMLHttpRequest();
  const job = new Promise((resolve, reject) => {
    sending.open("POST", "/v1/jobs");
    sending.upload.onprogress = ({ loaded, total }) => onProgress(loaded, total);
    sending.onload = () => {
      if (sending.status < 300) resolve(JSON.parse(sending.responseText));
      else reject(problemFrom(sending.status, sending.responseText, sending.getResponseHeader("Retry-After"), "/v1/jobs"));
    };
    sending.onerror = () => reject(UNREACHABLE);
    sending.onabort = () => resolve(null);
    sending.send(form);
  });
  return { sending, job };
}
