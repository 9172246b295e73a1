"use strict";
// Sends a photo to /invocations and draws what comes back. Everything is set as text, never as HTML.

const FEW = 8; // labels that are shown at first, if no more are predicted
const $ = (id) => document.getElementById(id);
const file = $("file"), drop = $("drop"), preview = $("preview"), labels = $("labels");
let thresholds = null; // Map of label -> threshold, in the model's order
let key = "", photo = null, latest = 0, all = false, scored = [];

const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`;

function say(text, kind = "", aside = "") {
  $("status").className = kind;
  $("status").replaceChildren(text, element("span", "aside", aside)); // the aside is for the ear
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
    throw new Error(key ? "This key is not the server's." : "This server asks for a key.");
  }
  const content = await answer.json();
  if (answer.ok) return content;
  const wait = answer.headers.get("Retry-After");
  throw new Error(wait ? `The server is busy. Try again in ${wait} s.` : content.message);
}

async function learn() {
  const model = await ask("model");
  thresholds = new Map(model.labels.map(({ label, threshold }) => [label, threshold]));
  $("model").textContent = `${model.name}, version ${model.version}: ${thresholds.size} labels`;
  $("key-form").hidden = true;
}

async function tag() {
  const turn = ++latest, name = photo.name || "pasted photo";
  say(`Looking at ${name} …`, "busy");
  labels.replaceChildren();
  $("more").hidden = $("legend").hidden = true;
  try {
    if (!thresholds) await learn();
    const type = /^image\//.test(photo.type) ? photo.type : "image/jpeg"; // the server looks itself
    const answer = await ask("invocations?all_scores=true", {
      method: "POST", body: photo, headers: { "Content-Type": type },
    });
    if (turn !== latest) return; // another photo came meanwhile
    const predicted = new Set(answer.predictions[0].labels);
    scored = Object.entries(answer.predictions[0].all_scores)
      .map(([label, score]) => ({ label, score, yes: predicted.has(label) }))
      .sort((a, b) => b.yes - a.yes || b.score - a.score);
    all = false;
    draw();
    const found = scored.filter((one) => one.yes).map((one) => `${one.label} ${percent(one.score)}`);
    const some = found.slice(0, FEW).join(", ") + (found.length > FEW ? " and more" : "");
    say(found.length
      ? `${found.length} of ${scored.length} labels reach their threshold for ${name}`
      : `No label reaches its threshold for ${name}. These come nearest:`, "", found.length ? `: ${some}` : "");
  } catch (error) {
    if (turn === latest) say(error instanceof TypeError ? "The server does not answer." : error.message, "wrong");
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
  track.setAttribute("aria-hidden", "true"); // the text says it
  fill.style.width = `${100 * score}%`;
  mark.style.left = `${100 * threshold}%`;
  track.append(fill, mark);
  track.title = `threshold ${percent(threshold)}`;
  const where = `, ${yes ? "at or above" : "below"} its threshold of ${percent(threshold)}`;
  item.append(tick, element("span", "name", label), element("span", "score", percent(score)),
    element("span", "aside", where), track);
  return item;
}

function take(found) {
  if (!found) return;
  photo = found;
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(found);
  preview.alt = `The photo: ${found.name || "pasted"}`;
  preview.hidden = false;
  drop.classList.add("full");
  $("invitation").querySelector("strong").textContent = "Choose another photo";
  tag();
}

preview.addEventListener("error", () => { preview.hidden = true; }); // a form that the browser can't show
file.addEventListener("change", () => { take(file.files[0]); file.value = ""; });
$("more").addEventListener("click", () => { all = !all; draw(); });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  (photo ? tag() : learn()).then(() => photo || say("No photo yet."), (error) => say(error.message, "wrong"));
});
// The whole window takes what is dropped, or a photo beside the frame would replace the page.
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") take([...event.dataTransfer.files][0]);
  });
}
window.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
learn().catch((error) => say(error instanceof TypeError ? "The server does not answer." : error.message, "wrong"));
