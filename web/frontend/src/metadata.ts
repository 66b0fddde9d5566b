// One control for every metadata field of the model. Among the facts a field is known or unknown:
// then the model imputes it, and the control shows what it took. Among the changes of a
// counterfactual it is, besides, unchanged.

import type { Field, Imputed, Metadata, Model, Value, Weights } from "./backend";
import { element, format, paintTrack } from "./dom";

type Entry = Value | null | undefined; // null: unknown; undefined: unchanged

interface Control {
  node: HTMLElement;
  get(): Entry;
  set(value: Entry): void;
  showImputed(imputed: Imputed | null): void;
}

interface Kind {
  prefix: string; // of the ids
  blank: Entry; // what a field is before it is touched
}

const FACTS: Kind = { prefix: "field", blank: null };
const CHANGES: Kind = { prefix: "change", blank: undefined };
const AS_STUDY = "~"; // the choice that stands for weights of several categories

export class MetadataControls {
  private readonly controls = new Map<string, Control>();
  private readonly blank: Entry;

  constructor(container: HTMLElement, model: Model, of: "facts" | "changes", onChange: () => void) {
    const kind = of === "facts" ? FACTS : CHANGES;
    this.blank = kind.blank;
    if (!model.conditioned) {
      container.append(element("p", { className: "note" }, "This model takes no metadata."));
      return;
    }
    for (const field of model.fields.filter((f) => f.available)) {
      const control = field.kind === "category" ? choice(field, kind, onChange) : number(field, kind, onChange);
      this.controls.set(field.name, control);
      container.append(control.node);
    }
    const others = model.fields.filter((f) => !f.available);
    if (of === "changes" || !others.length) return;
    container.append(
      element("details", { className: "unavailable" },
        element("summary", {}, `${others.length} that this model cannot use`),
        ...others.map((field) => unavailable(field, kind))),
    );
  }

  /** What is known, or what changes (null there: to unknown). */
  get<T extends Value | null>(): Record<string, T> {
    const values: Record<string, T> = {};
    for (const [name, control] of this.controls) {
      const value = control.get();
      if (value !== this.blank && value !== undefined) values[name] = value as T;
    }
    return values;
  }

  set(values: Record<string, Value | null>): void {
    for (const [name, control] of this.controls) control.set(name in values ? values[name] : this.blank);
  }

  known(): Metadata {
    return this.get<Value>();
  }

  showImputed(imputed: Record<string, Imputed>): void {
    for (const [name, control] of this.controls) control.showImputed(imputed[name] ?? null);
  }
}

/** Values without those that the model would refuse: an address may say anything. */
export function legal<T extends Value | null>(model: Model, values: Record<string, T>): Record<string, T> {
  const fields = new Map(model.fields.filter((field) => field.available).map((field) => [field.name, field]));
  const fits = (field: Field, value: Value | null): boolean => {
    if (value === null) return true;
    if (typeof value === "number") {
      return field.kind === "number" && value >= (field.low ?? -Infinity) && value <= (field.high ?? Infinity);
    }
    const names = typeof value === "string" ? [value] : Object.keys(value);
    const known = new Set(field.categories?.map((category) => category.value));
    return field.kind === "category" && names.length > 0 && names.every((name) => known.has(name));
  };
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => {
    const field = fields.get(name);
    return field !== undefined && fits(field, value);
  }));
}

function fieldset(field: Field, { prefix }: Kind, head: Node[], ...children: Node[]): HTMLElement {
  const label = element("label", { htmlFor: `${prefix}-${field.name}`, title: field.help }, field.label);
  if (field.unit) label.append(element("span", { className: "unit" }, ` ${field.unit}`));
  const node = element("div", { className: "field" },
    element("div", { className: "field-head" }, label, ...head), ...children);
  node.dataset["field"] = field.name;
  return node;
}

function unavailable(field: Field, kind: Kind): HTMLElement {
  const id = `${kind.prefix}-${field.name}`;
  const reason = element("p", { className: "hint", id: `${id}-reason` }, field.reason ?? "not available");
  const control =
    field.kind === "category"
      ? element("select", { id, disabled: true }, element("option", {}, "unknown"))
      : element("input", { id, type: "range", disabled: true });
  control.setAttribute("aria-describedby", reason.id);
  const node = fieldset(field, kind, [], control, reason);
  node.classList.add("disabled");
  return node;
}

/** The choices that are no value, as a kind has them. */
function blanks(kind: Kind): HTMLOptionElement[] {
  const unknown = element("option", { value: "" }, "unknown");
  return kind === FACTS ? [unknown] : [element("option", { value: "=" }, "unchanged"), unknown];
}

function choice(field: Field, kind: Kind, onChange: () => void): Control {
  const labels = new Map((field.categories ?? []).map(({ value, label }) => [value, label]));
  const mixed = element("option", { value: AS_STUDY, hidden: true }, "as in the study");
  const select = element("select", { id: `${kind.prefix}-${field.name}` }, ...blanks(kind), mixed,
    ...[...labels].map(([value, label]) => element("option", { value }, label)));
  const shares = element("ul", { className: "shares" });
  let weights: Weights | null = null;
  const showShares = (title: string, of: Weights): void => {
    const heaviest = Object.entries(of).sort(([, a], [, b]) => b - a).slice(0, 3).filter(([, w]) => w >= 0.01);
    shares.title = title;
    shares.replaceChildren(...heaviest.map(([value, weight]) => {
      const item = element("li", {}, element("span", {}, labels.get(value) ?? value), `${Math.round(100 * weight)} %`);
      item.style.setProperty("--share", String(weight));
      return item;
    }));
  };
  select.addEventListener("change", () => {
    if (select.value !== AS_STUDY) shares.replaceChildren();
    onChange();
  });
  return {
    node: fieldset(field, kind, [], select, shares),
    get() {
      if (select.value === "=") return undefined;
      return select.value === AS_STUDY ? weights : select.value || null;
    },
    set(value) {
      shares.replaceChildren();
      mixed.hidden = typeof value !== "object" || value === null;
      if (typeof value === "object" && value !== null) {
        weights = value;
        select.value = AS_STUDY;
        showShares("weights of the study", value);
      } else {
        select.value = value === undefined ? "=" : value === null ? "" : String(value);
      }
    },
    showImputed(imputed) {
      if (imputed && "weights" in imputed && select.value === "") showShares("imputed by the model", imputed.weights);
    },
  };
}

function number(field: Field, kind: Kind, onChange: () => void): Control {
  const id = `${kind.prefix}-${field.name}`;
  const scale = numberScale(field);
  const slider = element("input", { id, type: "range", min: "0", max: String(scale.steps), step: "1" });
  const mode = element("select", { id: `${id}-mode`, className: "mode" }, ...blanks(kind),
    element("option", { value: "known" }, kind === FACTS ? "known" : "changed"));
  mode.setAttribute("aria-label", `${field.label}: is it known`);
  const output = element("output", { className: "number" });
  output.htmlFor.add(id);
  const hint = element("p", { className: "hint warning" });
  const node = fieldset(field, kind, [mode],
    element("div", { className: "slide" }, slider, output), hint);

  let imputed = "";
  let exact: number | null = null; // a value that was given, where no slider position is just that
  const current = (): number => exact ?? scale.value(slider.valueAsNumber);
  const refresh = (): void => {
    const value = current();
    const known = mode.value === "known";
    const [low, high] = field.trained ?? [-Infinity, Infinity];
    const text = known ? format(value) : mode.value === "=" ? "as it is" : imputed || "imputed";
    node.classList.toggle("unknown", !known);
    output.value = text;
    slider.setAttribute("aria-valuetext", known ? `${text} ${field.unit ?? ""}`.trim() : text);
    hint.textContent =
      known && (value < low || value > high)
        ? `extrapolated: training saw ${format(low)} to ${format(high)}`
        : "";
    paintTrack(slider);
  };
  slider.addEventListener("input", () => { exact = null; mode.value = "known"; refresh(); onChange(); });
  mode.addEventListener("change", () => { refresh(); onChange(); });
  slider.valueAsNumber = scale.position(scale.middle);
  refresh();
  return {
    node,
    get() {
      if (mode.value === "=") return undefined;
      return mode.value === "known" ? current() : null;
    },
    set(value) {
      mode.value = value === undefined ? "=" : typeof value === "number" ? "known" : "";
      exact = typeof value === "number" ? value : null;
      if (exact !== null) slider.valueAsNumber = scale.position(exact);
      refresh();
    },
    showImputed(value) {
      if (!value || !("mean" in value) || mode.value === "known") return;
      imputed = `${format(value.mean)} ± ${format(value.sd)}`;
      const share = (x: number): string => `${(100 * scale.position(x)) / scale.steps}%`;
      slider.style.setProperty("--likely-from", share(value.mean - value.sd));
      slider.style.setProperty("--likely-to", share(value.mean + value.sd));
      slider.valueAsNumber = scale.position(value.mean);
      refresh();
    },
  };
}

/** Ends of a slider: what is legal, or where that is far, what training saw and a quarter more. */
export function reach(field: Field): [number, number] {
  const low = field.low ?? -Infinity;
  const high = field.high ?? Infinity;
  const [from, to] = field.trained ?? [0, 1];
  if (!field.trained || from === to) return [field.low ?? from, field.high ?? to + 1];
  if (field.scale === "log" && from > 0) {
    const margin = (to / from) ** 0.25;
    return [Math.max(low, from / margin), Math.min(high, to * margin)];
  }
  if (high - low <= 3 * (to - from)) return [low, high];
  const margin = 0.25 * (to - from);
  return [Math.max(low, from - margin), Math.min(high, to + margin)];
}

/** Slider positions 0 to `steps` and the values they stand for. */
function numberScale(field: Field) {
  const [low, high] = reach(field);
  const log = field.scale === "log" && low > 0;
  const step = field.step ?? (high - low >= 20 ? 1 : 0.1);
  const steps = log ? 200 : Math.max(1, Math.round((high - low) / step));
  const clamp = (x: number): number => Math.min(Math.max(x, low), high);
  const onStep = (x: number): number => clamp(Number((Math.round(x / step) * step).toFixed(6)));
  return {
    steps,
    middle: log ? Math.sqrt(low * high) : (low + high) / 2,
    value: (position: number): number =>
      onStep(log ? low * (high / low) ** (position / steps) : low + ((high - low) * position) / steps),
    position: (value: number): number => {
      const share = log ? Math.log(clamp(value) / low) / Math.log(high / low) : (clamp(value) - low) / (high - low);
      return Math.round(share * steps);
    },
  };
}
