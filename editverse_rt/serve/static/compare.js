// The result over its source, cut by a clip path that a range input moves.
const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const MAX_DRIFT_S = 0.04;

function mediaElement(url, isMoving, label) {
  const element = document.createElement(isMoving ? "video" : "img");
  if (isMoving) Object.assign(element, { muted: true, loop: true, playsInline: true, preload: "auto" });
  else element.alt = label;
  element.setAttribute("aria-label", label);
  element.src = url;
  return element;
}

/**
 * Show a result in `stage`, over its source where there is one.
 * wipe: the range input, the divider's place: the source is to the left of it, the result to the right; play: the button that plays and pauses.
 */
export function showComparison(stage, wipe, play, { result, source, isMoving, isSourceMoving, isSmall, ratio, onFail }) {
  const after = mediaElement(result, isMoving, "The result");
  const parts = [after];
  after.onerror = onFail;
  stage.style.aspectRatio = ratio;
  stage.parentElement.style.maxWidth = `calc(70vh * ${ratio})`; // with the range input, which is as wide
  let before = null, edge = null;
  if (source) {
    before = mediaElement(source, isSourceMoving, "The source");
    edge = document.createElement("div");
    edge.className = "edge";
    parts.unshift(before);
  }
  for (const part of parts) part.classList.toggle("small", isSmall);
  stage.replaceChildren(...parts, ...(edge ? [edge] : []));

  const cut = () => {
    after.style.clipPath = source ? `inset(0 0 0 ${wipe.value}%)` : "";
    if (edge) edge.style.left = `${wipe.value}%`;
    wipe.setAttribute("aria-valuetext", `${wipe.value} % source, ${100 - wipe.value} % result`);
  };
  wipe.value = 50;
  wipe.oninput = cut;
  cut();
  stage.onpointerdown = stage.onpointermove = (event) => {
    if (!edge || !event.buttons) return;
    const box = stage.getBoundingClientRect();
    wipe.value = (100 * (event.clientX - box.left)) / box.width;
    cut();
  };

  const other = before instanceof HTMLVideoElement ? before : null;
  play.hidden = !isMoving;
  if (!isMoving) { // a GIF plays by itself, and cannot be kept in step
    if (!STILL.matches) other?.play().catch(() => {});
    return;
  }
  const follow = () => {
    if (!after.isConnected) return;
    if (other && !other.seeking && Math.abs(other.currentTime - after.currentTime) > MAX_DRIFT_S) other.currentTime = after.currentTime;
    requestAnimationFrame(follow);
  };
  const start = () => Promise.all([after.play(), other?.play()]).catch(() => {}); // a browser may refuse to play by itself
  after.onplay = () => { play.textContent = "Pause"; };
  after.onpause = () => { play.textContent = "Play"; other?.pause(); };
  play.textContent = "Play";
  play.onclick = () => { if (after.paused) start(); else after.pause(); };
  requestAnimationFrame(follow);
  if (!STILL.matches) start();
}
