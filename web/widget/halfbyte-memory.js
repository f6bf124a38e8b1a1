// <halfbyte-memory model="llama-3.1-8b" gpu="h100-80gb">: what a fine-tuning run of a model needs, and whether a GPU holds it.
// Attributes, properties, events and parts are described in docs/book/src/embed.md.

// Attributes that are settings of the run, by the library's names.
const RUN = { method: "method", rank: "rank", targets: "targets", length: "length", batch: "batch", accumulation: "accumulation", optimizer: "optimizer", dtype: "compute_dtype" };
const DEFAULTS = { model: "llama-3.1-8b", gpu: "", method: "qlora", rank: "16", targets: "", length: "2048", batch: "1", accumulation: "1", optimizer: "AdamW", recompute: "true", dtype: "bf16" };
const METHODS = [["qlora", "QLoRA"], ["lora", "LoRA"], ["full", "Full"]];
const FIELDS = [
  ["length", "Tokens of a sequence", "number"],
  ["batch", "Sequences at once", "number"],
  ["rank", "Rank", "number"],
  ["optimizer", "Optimizer", [["AdamW", "AdamW, 32 bits"], ["AdamW8bit", "AdamW, 8 bits"]]],
  ["recompute", "Layers in the backward pass", [["true", "computed again"], ["false", "kept"]]],
  ["dtype", "Computes in", [["bf16", "bf16 (CUDA)"], ["f32", "f32"]]],
];
const TONES = {
  base: 0, other: 1, adapters: 2, optimizer: 3, gradients: 4, inputs: 5, graph: 6, backward: 7, work: 8, scores: 9, logits: 10,
};

let module;
// The module is fetched once for all elements of a page, when the first of them is shown.
const start = () => (module ??= load());

async function load() {
  const response = await fetch(new URL("halfbyte-memory.wasm", import.meta.url));
  if (!response.ok) throw new Error(`halfbyte-memory.wasm: ${response.status}`);
  const { instance } = await WebAssembly.instantiate(await response.arrayBuffer());
  return instance.exports;
}

// A question is lines of a key, a tab and a value; the answer is JSON.
function ask({ memory, room, answer, done }, lines) {
  const question = new TextEncoder().encode(lines.join("\n"));
  const at = room(question.length);
  new Uint8Array(memory.buffer, at, question.length).set(question);
  const place = answer(at, question.length);
  const [from, length] = [Number(BigInt.asUintN(32, place >> 32n)), Number(BigInt.asUintN(32, place))];
  const text = new TextDecoder().decode(new Uint8Array(memory.buffer, from, length));
  done(at, question.length);
  done(from, length);
  return JSON.parse(text);
}

// The keys of a configuration that are numbers, words or switches, also those of the text model inside.
function* flat(object, path) {
  for (const [key, value] of Object.entries(object)) {
    if (value !== null && typeof value === "object") {
      if (key === "text_config") yield* flat(value, `${path}${key}.`);
    } else if (!/[.\t\n]/.test(key + value) || typeof value === "number") {
      yield `${path}${key}\t${value}`;
    }
  }
}

const gib = (bytes) => {
  const value = bytes / 2 ** 30;
  return value < 0.1 ? `${(bytes / 2 ** 20).toPrecision(3)} MiB` : `${value >= 1000 ? Math.round(value) : value.toPrecision(3)} GiB`;
};

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const sheet = new CSSStyleSheet();
sheet.replaceSync(`
:host {
  --_ink: var(--halfbyte-ink, light-dark(#1d1c1a, #e9e7e2));
  --_soft: var(--halfbyte-ink-soft, light-dark(#5c5952, #a9a69e));
  --_surface: var(--halfbyte-surface, light-dark(#fff, #1c1f23));
  --_line: var(--halfbyte-line, light-dark(#8d897f, #737980));
  --_accent: var(--halfbyte-accent, light-dark(#0d6464, #6cc7c0));
  display: block;
  container-type: inline-size;
  color: var(--_ink);
  font: var(--halfbyte-font, 400 0.9375rem/1.5 system-ui, sans-serif);
}
:host([hidden]) { display: none; }
* { box-sizing: border-box; }
.card { display: grid; gap: 1rem; padding: 1.25rem; background: var(--_surface); border: 1px solid color-mix(in srgb, var(--_line) 45%, transparent); border-radius: var(--halfbyte-radius, 0.75rem); }
.settings { display: grid; gap: 0.9rem; }
.fields { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(11rem, 100%), 1fr)); gap: 0.75rem 1rem; }
label { display: grid; gap: 0.25rem; font-size: 0.8125rem; font-weight: 550; }
select, input { width: 100%; min-height: 2.25rem; padding: 0.25rem 0.5rem; font: inherit; font-size: 0.875rem; font-weight: 400; color: inherit; background: var(--_surface); border: 1px solid var(--_line); border-radius: 0.4rem; }
:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; }
summary { cursor: pointer; font-size: 0.8125rem; font-weight: 550; }
details[open] summary { margin-bottom: 0.75rem; }
.verdict { margin: 0; font-size: 1.0625rem; }
.verdict strong { font-size: 1.5rem; letter-spacing: -0.02em; }
.bar { display: flex; height: 1.75rem; overflow: hidden; border-radius: 0.4rem; background: color-mix(in srgb, var(--_ink) 9%, transparent); }
.bar span { flex: none; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); gap: 0.2rem 1.5rem; margin: 0; padding: 0; list-style: none; font-size: 0.8125rem; }
li { display: grid; grid-template-columns: auto 1fr auto; gap: 0.5rem; align-items: baseline; }
li span:first-child { width: 0.65rem; height: 0.65rem; border-radius: 0.2rem; }
li span:last-child { font-variant-numeric: tabular-nums; color: var(--_soft); }
.error:empty { display: none; }
.error { margin: 0; color: light-dark(#a3281c, #f0918a); overflow-wrap: anywhere; }
.by { margin: 0; font-size: 0.75rem; color: var(--_soft); }
.by a { color: inherit; }
${["#0f6b6b,#3f9d98", "#80909f,#7f8e9c", "#d9982f,#e3ad52", "#b4552d,#d07a4f", "#c8708a,#d58aa0", "#35669f,#6b97cc", "#77aede,#98c4ea", "#7763b3,#9f8bd8", "#b3b0a6,#6f7075", "#97497f,#c07bab", "#84943a,#aebd5e", "#cdbd9b,#998c6f"]
  .map((pair, tone) => `.t${tone} { background: light-dark(${pair}); }`).join("\n")}
`);

class HalfbyteMemory extends HTMLElement {
  static observedAttributes = [...Object.keys(DEFAULTS), "config"];

  #controls = {};
  #drawn = false;
  #asked = false;
  #plan = null;

  constructor() {
    super();
    this.attachShadow({ mode: "open", delegatesFocus: true }).adoptedStyleSheets = [sheet];
  }

  // The latest plan, or null.
  get plan() {
    return this.#plan;
  }

  connectedCallback() {
    if (!this.#drawn) this.#draw();
    this.#refresh();
  }

  attributeChangedCallback() {
    if (this.isConnected && this.#drawn) this.#refresh();
  }

  #control(name, label, kind) {
    const control = Array.isArray(kind)
      ? make("select", { part: "field" }, ...kind.map(([value, words]) => make("option", { value }, words)))
      : make("input", { part: "field", type: "number", min: 1, step: 1, inputmode: "numeric" });
    control.addEventListener("change", (event) => {
      // The element's own event says what changed; a control's would say it twice.
      event.stopPropagation();
      if (control.value !== "") this[name] = control.value;
    });
    this.#controls[name] = control;
    return make("label", {}, label, control);
  }

  #draw() {
    this.#drawn = true;
    const main = [["model", "Model", []], ["method", "Method", METHODS], ["gpu", "GPU", [["", "any"]]]];
    const fields = (list) => make("div", { class: "fields" }, ...list.map((field) => this.#control(...field)));
    this.verdict = make("p", { class: "verdict", part: "verdict", "aria-live": "polite" });
    this.bar = make("div", { class: "bar", part: "bar", role: "img" });
    this.legend = make("ul", { part: "legend" });
    this.error = make("p", { class: "error", part: "error", role: "alert" });
    const more = make("details", { part: "more" }, make("summary", {}, "More settings"), fields(FIELDS));
    const link = make("a", { href: new URL("calculator/", import.meta.url).href, target: "_blank", rel: "noopener" }, "Halfbyte");
    const card = make("div", { class: "card", part: "card" },
      make("div", { class: "settings", part: "settings" }, fields(main), more),
      this.verdict, this.bar, this.legend, this.error, make("p", { class: "by", part: "by" }, "Computed by ", link));
    this.shadowRoot.append(card);
  }

  // Several attributes that change together are answered once.
  #refresh() {
    if (this.#asked) return;
    this.#asked = true;
    queueMicrotask(async () => {
      try {
        const exports = await start();
        this.#asked = false;
        const answer = ask(exports, this.#question());
        this.#fill(answer);
        if (answer.error) throw new Error(answer.error);
        this.#show(answer);
      } catch (error) {
        this.#asked = false;
        this.#fail(error.message);
      }
    });
  }

  #question() {
    const lines = [`model\t${this.model}`];
    if (this.gpu) lines.push(`gpu\t${this.gpu}`);
    if (this.hasAttribute("config")) {
      const config = JSON.parse(this.getAttribute("config"));
      lines.push(...flat(config, "config."));
    }
    for (const [name, field] of Object.entries(RUN)) lines.push(`run.${field}\t${this[name]}`);
    return [...lines, `run.recompute\t${this.recompute !== "false"}`, `run.weight_bytes\t${this.dtype === "f32" && this.method !== "qlora" ? 4 : 2}`];
  }

  // The lists of models and GPUs are the library's; the controls show the attributes.
  #fill({ models, gpus }) {
    const options = (name, list) => {
      const known = new Set([...this.#controls[name].options].map((option) => option.value));
      this.#controls[name].append(...list.filter((value) => !known.has(value)).map((value) => make("option", { value }, value)));
    };
    if (models) options("model", models);
    if (gpus) options("gpu", gpus.map((gpu) => gpu.name));
    this.#controls.model.disabled = this.hasAttribute("config");
    for (const [name, control] of Object.entries(this.#controls)) control.value = this[name];
  }

  #show(plan) {
    const changed = JSON.stringify(plan) !== JSON.stringify(this.#plan);
    this.#plan = plan;
    if (plan.gpu) this.#controls.gpu.value = plan.gpu.name;
    const whole = Math.max(plan.needed, plan.gpu ? plan.gpu.gib * 2 ** 30 : 0);
    const smallest = plan.gpus.find((gpu) => gpu.fits);
    const share = plan.gpu && Math.round((100 * plan.needed) / (plan.gpu.gib * 2 ** 30));
    const words = plan.gpu
      ? ` ${plan.gpu.fits ? "fits" : "does not fit"} ${plan.gpu.name}: ${share}% of ${plan.gpu.gib} GiB`
      : smallest ? ` fits ${smallest.name} with ${smallest.gib} GiB, or larger` : " fits no single GPU in the list";
    this.verdict.replaceChildren(make("strong", {}, gib(plan.needed)), words);
    this.verdict.dataset.fits = plan.gpu ? plan.gpu.fits : Boolean(smallest);
    this.bar.setAttribute("aria-label", plan.parts.map((part) => `${part.name} ${gib(part.bytes)}`).join(", "));
    const tone = (part) => `t${TONES[part.component] ?? 11}`;
    this.bar.replaceChildren(...plan.parts.map((part) => {
      const segment = make("span", { class: tone(part), part: `segment ${part.component}`, title: `${part.name}: ${gib(part.bytes)}` });
      segment.style.width = `${(100 * part.bytes) / whole}%`;
      return segment;
    }));
    this.legend.replaceChildren(...plan.parts.map((part) =>
      make("li", { title: part.formula }, make("span", { class: tone(part) }), make("span", {}, part.name), make("span", {}, gib(part.bytes)))));
    this.error.textContent = "";
    if (changed) this.dispatchEvent(new CustomEvent("change", { bubbles: true, composed: true, detail: plan }));
  }

  #fail(message) {
    this.#plan = null;
    this.verdict.replaceChildren();
    this.bar.replaceChildren();
    this.legend.replaceChildren();
    this.error.textContent = message;
    this.dispatchEvent(new CustomEvent("error", { detail: { message } }));
  }
}

// Each attribute is a property of the same name.
for (const [name, value] of Object.entries({ ...DEFAULTS, config: "" })) {
  Object.defineProperty(HalfbyteMemory.prototype, name, {
    enumerable: true,
    get() {
      return this.getAttribute(name) ?? value;
    },
    set(now) {
      if (now === null || now === undefined) this.removeAttribute(name);
      else this.setAttribute(name, name === "config" && typeof now !== "string" ? JSON.stringify(now) : String(now));
    },
  });
}

customElements.get("halfbyte-memory") ?? customElements.define("halfbyte-memory", HalfbyteMemory);
