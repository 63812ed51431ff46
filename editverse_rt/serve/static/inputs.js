// The files of a request, and earlier results among them. The document is told by "inputs-changed".
import { $, bytes, make } from "/static/parts.js";
import { showError } from "/static/saying.js";

let inputs = [];

/** Each with kind, name (its tag), label and url, and either the file or the job whose file it is. */
export const allInputs = () => inputs;

export function setInputs(others) {
  inputs = others;
  showInputs();
}

export function addInput(kind, input) {
  let number = 1;
  while (inputs.some((other) => other.name === `${kind}${number}`)) number += 1;
  inputs.push({ kind, name: `${kind}${number}`, ...input });
  showInputs();
}

export function addFiles(files) {
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
  $("inputs").replaceChildren(...inputs.map((input) => {
    const tag = make("button", { type: "button", className: "tag", textContent: `<${input.name}>` });
    tag.setAttribute("aria-label", `Insert <${input.name}> into the instruction`);
    tag.onclick = () => { insertText(`<${input.name}>`); };
    const remove = make("button", { type: "button", className: "quiet", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove ${input.name}`);
    remove.onclick = () => {
      inputs = inputs.filter((other) => other !== input);
      showInputs();
      $("files").focus();
    };
    const still = input.isMoving ? make("video", { src: `${input.url}#t=0.01`, muted: true, preload: "metadata" }) : make("img", { src: input.url, alt: "" });
    still.setAttribute("aria-hidden", "true");
    return make("li", {}, still, tag, remove, make("span", { className: "name", textContent: input.label, title: input.label }));
  }));
  document.dispatchEvent(new Event("inputs-changed"));
}

function insertText(text) {
  const field = $("instruction");
  const before = field.value.slice(0, field.selectionStart), after = field.value.slice(field.selectionEnd);
  const spaced = `${before && !/\s$/.test(before) ? " " : ""}${text}${/^\s/.test(after) ? "" : " "}`;
  field.setRangeText(spaced, field.selectionStart, field.selectionEnd, "end");
  field.focus();
}
