"use strict";
// Sends a photo to /invocations and draws the response. All content is set as text, never as HTML.

const FEW = 8; // labels shown at first, unless more are predicted
const $ = (id) => document.getElementById(id);
const file = $("file"), drop = $("drop"), preview = $("preview"), labels = $("labels");
let thresholds = null; // Map of label -> threshold, in the model's order
let key = "", photo = null, latest = 0, all = false, scored = [];

const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`;

function setStatus(text, kind = "", aside = "") {
  $("status").className = kind;
  $("status").replaceChildren(text, element("span", "aside", aside)); // for screen readers only
}

function element(name, className, text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
    throw new Error(key ? "The API key is wrong." : "This server requires an API key.");
  }
  const content = await response.json();
  if (response.ok) return content;
  const wait = response.headers.get("Retry-After");
  throw new Error(wait ? `The server is busy. Try again in ${wait} s.` : content.message);
}

async function loadModel() {
  const model = await request("model");
  thresholds = new Map(model.labels.map(({ label, threshold }) => [label, threshold]));
  $("model").textContent = `${model.name}, version ${model.version}: ${thresholds.size} labels`;
  $("key-form").hidden = true;
}

async function tag() {
  const number = ++latest, name = photo.name || "pasted photo";
  setStatus(`Tagging ${name} …`, "busy");
  labels.replaceChildren();
  $("more").hidden = $("legend").hidden = true;
  try {
    if (!thresholds) await loadModel();
    const type = /^image\//.test(photo.type) ? photo.type : "image/jpeg"; // the server detects the format
    const { predictions: [prediction] } = await request("invocations?all_scores=true", {
      method: "POST", body: photo, headers: { "Content-Type": type },
    });
    if (number !== latest) return; // a newer photo was chosen meanwhile
    const predicted = new Set(prediction.labels);
    scored = Object.entries(prediction.all_scores)
      .map(([label, score]) => ({ label, score, yes: predicted.has(label) }))
      .sort((a, b) => b.yes - a.yes || b.score - a.score);
    all = false;
    draw();
    const found = scored.filter((one) => one.yes).map((one) => `${one.label} ${percent(one.score)}`);
    const spoken = found.slice(0, FEW).join(", ") + (found.length > FEW ? " and more" : "");
    setStatus(found.length
      ? `${found.length} of ${scored.length} labels reach their threshold for ${name}`
      : `No label reaches its threshold for ${name}. The highest scores:`, "", found.length ? `: ${spoken}` : "");
  } catch (error) {
    if (number === latest) setStatus(error instanceof TypeError ? "The server does not respond." : error.message, "wrong");
  }
}

function draw() {
  const few = Math.min(scored.length, Math.max(FEW, scored.filter((one) => one.yes).length));
  labels.replaceChildren(...scored.slice(0, all ? scored.length : few).map(bar));
  $("legend").hidden = scored.length === 0;
  $("more").hidden = few === scored.length;
  $("more").setAttribute("aria-expanded", String(all));
  $("more").textContent = all ? "Show fewer" : `Show all ${scored.length} labels`;
}

function bar({ label, score, yes }) {
  const threshold = thresholds.get(label), item = element("li", yes ? "yes" : "no");
  const tick = element("span", "tick", yes ? "✓" : "");
  tick.setAttribute("aria-hidden", "true");
  const track = element("div", "bar"), fill = element("div", "fill"), mark = element("div", "mark");
  track.setAttribute("aria-hidden", "true"); // the text has the same values
  fill.style.width = `${100 * score}%`;
  mark.style.left = `${100 * threshold}%`;
  track.append(fill, mark);
  track.title = `threshold ${percent(threshold)}`;
  const description = `, ${yes ? "at or above" : "below"} its threshold of ${percent(threshold)}`;
  item.append(tick, element("span", "name", label), element("span", "score", percent(score)),
    element("span", "aside", description), track);
  return item;
}

function choose(chosen) {
  if (!chosen) return;
  photo = chosen;
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(chosen);
  preview.alt = `The photo: ${chosen.name || "pasted"}`;
  preview.hidden = false;
  drop.classList.add("full");
  $("invitation").querySelector("strong").textContent = "Choose another photo";
  tag();
}

preview.addEventListener("error", () => { preview.hidden = true; }); // a format that the browser cannot show
file.addEventListener("change", () => { choose(file.files[0]); file.value = ""; });
$("more").addEventListener("click", () => { all = !all; draw(); });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  (photo ? tag() : loadModel()).then(() => photo || setStatus("No photo yet."), (error) => setStatus(error.message, "wrong"));
});
// The whole window accepts drops; otherwise a photo dropped beside the frame would replace the page.
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") choose([...event.dataTransfer.files][0]);
  });
}
window.addEventListener("paste", (event) => choose([...event.clipboardData.files][0]));
loadModel().catch((error) => setStatus(error instanceof TypeError ? "The server does not respond." : error.message, "wrong"));
