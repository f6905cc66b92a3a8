// The page to try models with. Whatever comes from the server is shown as text, never as markup.

import { canRecord, record } from "./recording.js";
import { draw, lines } from "./results.js";

const at = (id) => document.getElementById(id);
const EXAMPLES = { row: '{"a column": 1}', arrays: '{"x": [[0, 0]]}' };
const ACCEPTS = { image: "image/*", audio: "audio/*" };
let models = [];
let file = null;
let shown = null; // the address of what is previewed
let recording = null;

function headers(more = {}) {
  const token = at("token").value.trim();
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").className = isError ? "error" : "quiet";
}

async function reason(response) {
  try {
    const { error } = await response.json();
    return typeof error === "string" ? error : error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function list() {
  const response = await fetch("v1/models", { headers: headers() });
  at("token-row").hidden = response.status !== 401 && !at("token").value;
  if (!response.ok) {
    say(await reason(response), true);
    return;
  }
  models = (await response.json()).data;
  at("model").replaceChildren(
    ...models.map((model) => new Option(`${model.id} (${model.task})`, model.id)),
  );
  choose();
  say("Nothing was asked yet.");
}

function chosen() {
  return models.find((model) => model.id === at("model").value);
}

function choose() {
  const model = chosen();
  if (!model) return;
  at("plan").textContent = `Runs as ${model.plan.summary}. Takes ${model.inputs.join("; ")}.`;
  const takesFile = model.takes in ACCEPTS;
  at("file-row").hidden = !takesFile;
  at("text-row").hidden = takesFile;
  at("file-label").textContent = model.takes === "audio" ? "Recording" : "Picture";
  at("file").accept = ACCEPTS[model.takes] ?? "";
  at("record").hidden = model.takes !== "audio" || !canRecord();
  at("text-label").textContent = model.takes === "text" ? "Text" : "Input, as JSON";
  at("text").placeholder = EXAMPLES[model.takes] ?? "";
  recording?.stop().catch(() => {}); // another model was chosen
  recording = null;
  at("record").textContent = "Record";
  take(null);
  clear();
}

function take(given) {
  file = given;
  if (shown) URL.revokeObjectURL(shown);
  shown = file ? URL.createObjectURL(file) : null;
  for (const [id, kind] of [["picture", "image"], ["sound", "audio"]]) {
    const element = at(id);
    element.hidden = !(file && chosen()?.takes === kind);
    if (element.hidden) element.removeAttribute("src");
    else element.src = shown;
  }
  at("picture").alt = file ? file.name : "";
}

function clear() {
  at("labels").replaceChildren();
  at("drawn").hidden = at("answer").hidden = true;
}

function request(model) {
  if (model.takes in ACCEPTS) {
    if (!file) throw new Error("Choose a file first.");
    return { body: file, headers: headers({ "content-type": "application/octet-stream" }) };
  }
  const text = at("text").value;
  if (model.takes === "text") {
    return { body: text, headers: headers({ "content-type": "text/plain" }) };
  }
  let input;
  try {
    input = JSON.parse(text);
  } catch (error) {
    throw new Error(`The input is not JSON: ${error.message}`);
  }
  const body = JSON.stringify({ inputs: [input] });
  return { body, headers: headers({ "content-type": "application/json" }) };
}

function show(result) {
  const found = lines(result);
  const coloured = found.some(({ colour }) => colour);
  at("labels").replaceChildren(
    ...found.map(({ name, figure, share, colour }) => {
      const row = document.createElement("div");
      const percent = Math.max(0, Math.min(1, share || 0)) * 100;
      row.style.background = `linear-gradient(to right, var(--bar) ${percent}%, transparent ${percent}%)`;
      if (coloured) {
        row.append(document.createElement("i"));
        row.firstChild.style.background = colour ?? "none";
      }
      for (const text of [name, figure]) {
        const cell = document.createElement("span");
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    }),
  );
  at("drawn").hidden = !draw(at("drawn"), at("picture"), result);
  at("drawn").setAttribute("aria-label", `On the picture: ${found.map(({ name }) => name).join(", ")}`);
  at("answer").textContent = JSON.stringify(result, null, 1);
  at("answer").hidden = false;
}

async function toggleRecording() {
  at("record").disabled = true;
  try {
    if (recording) {
      const ending = recording;
      recording = null;
      take(await ending.stop());
      say("Recorded; listen to it, or ask.");
    } else {
      recording = await record();
      at("file").value = "";
      clear();
      say("Recording …");
    }
  } catch (error) {
    say(`The microphone cannot be recorded: ${error.message}`, true);
  } finally {
    at("record").textContent = recording ? "Stop" : "Record";
    at("record").disabled = false;
  }
}

async function ask(event) {
  event.preventDefault();
  const model = chosen();
  if (!model) {
    await list();
    return;
  }
  clear();
  at("ask").disabled = true;
  try {
    const options = request(model);
    say("Asking …");
    const start = performance.now();
    const path = `v1/models/${encodeURIComponent(model.id)}:predict`;
    const response = await fetch(path, { method: "POST", ...options });
    if (!response.ok) throw new Error(await reason(response));
    const answer = await response.json();
    say(`Answered in ${(performance.now() - start).toFixed(1)} ms, from here and back.`);
    show(answer.results[0]);
  } catch (error) {
    say(error.message, true);
  } finally {
    at("ask").disabled = false;
  }
}

at("form").addEventListener("submit", ask);
at("model").addEventListener("change", choose);
at("token").addEventListener("change", list);
at("record").addEventListener("click", toggleRecording);
at("file").addEventListener("change", () => take(at("file").files[0] ?? null));
for (const name of ["dragenter", "dragover"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) {
  at("drop").addEventListener(name, () => at("drop").classList.remove("over"));
}
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0] ?? null);
});
list();
