// One control for every metadata field of the model. A field is known (the reader says so) or
// unknown: then the model imputes it, and the control shows what it took.

import type { Field, Imputed, Model, Value } from "./api";
import { element, format, paintTrack } from "./dom";

interface Control {
  node: HTMLElement;
  get(): Value | null;
  reset(): void;
  showImputed(imputed: Imputed | null): void;
}

export class MetadataControls {
  private readonly controls = new Map<string, Control>();

  constructor(container: HTMLElement, model: Model, onChange: () => void) {
    if (!model.conditioned) {
      container.append(element("p", { className: "note" }, "This model takes no metadata."));
      return;
    }
    // What cannot be set comes last.
    for (const field of [...model.fields].sort((a, b) => Number(b.available) - Number(a.available))) {
      if (!field.available) {
        container.append(unavailable(field));
        continue;
      }
      const control = field.kind === "category" ? choice(field, onChange) : number(field, onChange);
      this.controls.set(field.name, control);
      container.append(control.node);
    }
  }

  known(): Record<string, Value> {
    const values: Record<string, Value> = {};
    for (const [name, control] of this.controls) {
      const value = control.get();
      if (value !== null) values[name] = value;
    }
    return values;
  }

  reset(): void {
    for (const control of this.controls.values()) control.reset();
  }

  showImputed(imputed: Record<string, Imputed>): void {
    for (const [name, control] of this.controls) control.showImputed(imputed[name] ?? null);
  }
}

function heading(field: Field, ...rest: Node[]): HTMLElement {
  const label = element("label", { htmlFor: `field-${field.name}`, title: field.help }, field.label);
  if (field.unit) label.append(element("span", { className: "unit" }, ` ${field.unit}`));
  return element("div", { className: "field-head" }, label, ...rest);
}

function fieldset(field: Field, ...children: Node[]): HTMLElement {
  const node = element("div", { className: "field" }, ...children);
  node.dataset["field"] = field.name;
  return node;
}

function unavailable(field: Field): HTMLElement {
  const id = `field-${field.name}`;
  const reason = element("p", { className: "hint", id: `${id}-reason` }, field.reason ?? "not available");
  const control =
    field.kind === "category"
      ? element("select", { id, disabled: true }, element("option", {}, "unknown"))
      : element("input", { id, type: "range", disabled: true });
  control.setAttribute("aria-describedby", reason.id);
  const node = fieldset(field, heading(field), control, reason);
  node.classList.add("disabled");
  return node;
}

function choice(field: Field, onChange: () => void): Control {
  const select = element("select", { id: `field-${field.name}` },
    element("option", { value: "" }, "unknown"),
    ...(field.categories ?? []).map(({ value, label }) => element("option", { value }, label)));
  const hint = element("p", { className: "hint" });
  select.addEventListener("change", onChange);
  const labels = new Map(field.categories?.map(({ value, label }) => [value, label]));
  return {
    node: fieldset(field, heading(field), select, hint),
    get: () => select.value || null,
    reset: () => { select.value = ""; },
    showImputed(imputed) {
      hint.textContent =
        imputed && "weights" in imputed
          ? `imputed ${Object.entries(imputed.weights)
              .sort(([, a], [, b]) => b - a)
              .slice(0, 2)
              .map(([value, weight]) => `${labels.get(value) ?? value} ${Math.round(100 * weight)} %`)
              .join(", ")} …`
          : "";
    },
  };
}

function number(field: Field, onChange: () => void): Control {
  const id = `field-${field.name}`;
  const scale = numberScale(field);
  const slider = element("input", { id, type: "range", min: "0", max: String(scale.steps), step: "1" });
  const known = element("input", { type: "checkbox", id: `${id}-known` });
  const output = element("output", { className: "number" });
  output.htmlFor.add(id);
  const hint = element("p", { className: "hint warning" });
  const node = fieldset(field,
    heading(field, element("label", { className: "known" }, known, "known")),
    element("div", { className: "slide" }, slider, output), hint);
  known.setAttribute("aria-label", `${field.label} is known`);

  let imputed = "";
  const refresh = (): void => {
    const value = scale.value(slider.valueAsNumber);
    const text = format(value);
    const [low, high] = field.trained ?? [-Infinity, Infinity];
    node.classList.toggle("unknown", !known.checked);
    output.value = known.checked ? text : imputed;
    slider.setAttribute("aria-valuetext",
      known.checked ? `${text} ${field.unit ?? ""}`.trim() : `unknown, ${imputed}`);
    hint.textContent =
      known.checked && (value < low || value > high)
        ? `outside what training saw, ${format(low)} to ${format(high)}`
        : "";
    paintTrack(slider);
  };
  slider.addEventListener("input", () => { known.checked = true; refresh(); onChange(); });
  known.addEventListener("change", () => { refresh(); onChange(); });
  slider.valueAsNumber = scale.position(scale.middle);
  refresh();
  return {
    node,
    get: () => (known.checked ? scale.value(slider.valueAsNumber) : null),
    reset() { known.checked = false; refresh(); },
    showImputed(value) {
      if (!value || !("mean" in value) || known.checked) return;
      imputed = `imputed ${format(value.mean)} ± ${format(value.sd)}`;
      slider.valueAsNumber = scale.position(value.mean);
      refresh();
    },
  };
}

/** Ends of a slider: what training saw and a quarter more to either side, within what is legal. */
function reach(field: Field): [number, number] {
  const low = field.low ?? -Infinity;
  const high = field.high ?? Infinity;
  const [from, to] = field.trained ?? [0, 1];
  if (!field.trained || from === to) return [field.low ?? from, field.high ?? to + 1];
  if (field.scale === "log" && from > 0) {
    const margin = (to / from) ** 0.25;
    return [Math.max(low, from / margin), Math.min(high, to * margin)];
  }
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
