// One text, its answer (a class, tags, a number or a continuation), and, where the server explains, the words that spoke
// for and against it.
const at = (id) => document.getElementById(id);
let explains = false, asked = "";

async function post(path, content) {
  const reply = await fetch(path, { method: "POST", body: JSON.stringify(content) });
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error || reply.statusText);
  return value;
}

function bars(probabilities) {
  const rows = Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, 8);
  at("bars").replaceChildren(...rows.map(([label, value]) => {
    const row = document.createElement("div");
    row.className = "row";
    const name = document.createElement("span");
    name.textContent = label;
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.value = value;
    const number = document.createElement("span");
    number.textContent = (100 * value).toFixed(1) + " %";
    row.append(name, bar, number);
    return row;
  }));
}

function tagged(answer) {
  at("bars").replaceChildren(...answer.words.flatMap((word, i) => {
    const span = document.createElement("span");
    const tag = document.createElement("sub");
    span.textContent = word;
    if (answer.tags[i] !== "O") {
      span.className = "tagged";
      tag.textContent = answer.tags[i];
      span.append(tag);
    }
    if (explains && answer.tags[i] !== "?") {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "word";
      button.title = "What spoke for its tag?";
      button.append(span);
      button.addEventListener("click", () => ask(button, async () => words(await post("/explain", { text: asked, word: i }))));
      return [button, " "];
    }
    return [span, " "];
  }));
}

function show(answer) { // by what the model gives: a class, classes, tags, a number, a continuation
  at("label").textContent =
    answer.label !== undefined ? answer.label + " (" + (100 * answer.probability).toFixed(1) + " %)" :
    answer.labels !== undefined ? answer.labels.join(", ") || "none of the classes" :
    answer.number !== undefined ? String(Number(answer.number.toPrecision(6))) : "";
  if (answer.label !== undefined || answer.labels !== undefined) bars(answer.probabilities);
  else if (answer.tags !== undefined) tagged(answer);
  else at("bars").textContent = answer.continuation || "";
}

function words(map) {
  const most = Math.max(...map.scores.map(Math.abs), 1e-9);
  const parts = map.words.flatMap((word, i) => {
    const span = document.createElement("span");
    span.textContent = word;
    const strength = Math.ceil(4 * Math.abs(map.scores[i]) / most);
    if (strength) span.className = (map.scores[i] > 0 ? "for-" : "against-") + strength;
    span.title = map.scores[i].toFixed(3);
    return [span, " "];
  });
  at("words").replaceChildren(...(map.refused ? [] : parts));
  at("check").textContent = map.refused
    ? "The map is withheld: its scores miss what they should add up to by " + (100 * map.delta).toFixed(1) + " %."
    : "Green speaks for " + map.label + ", orange against it. The scores add up to the difference from an empty text, to " +
      (100 * map.delta).toFixed(2) + " %.";
  at("title").textContent = map.title;
}

async function ask(button, question) {
  button.disabled = true;
  at("error").textContent = "";
  try {
    await question();
  } catch (error) {
    at("error").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(event.target.querySelector("button"), async () => {
    asked = at("text").value;
    const [answer] = (await post("/predict", { texts: [asked] })).predictions;
    show(answer);
    at("why").hidden = !explains;
    at("answer").hidden = false;
    if (explains) words(await post("/explain", { text: asked }));
  });
});

fetch("/health").then((reply) => reply.json()).then((facts) => {
  explains = facts.explains;
  at("model").textContent = facts.model;
  const kinds = facts.task === "token-classification" ? " tags" : " classes";
  at("about").textContent = (facts.labels.length ? facts.labels.length + kinds + "; " : "") + "variant " + facts.variant + ". Texts are answered on this machine and not kept.";
  if (location.hash.length > 1) { // a link to a text: …/#a%20text; what follows the # is not sent
    at("text").value = decodeURIComponent(location.hash.slice(1));
    at("form").requestSubmit();
  }
});
