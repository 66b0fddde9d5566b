// What the page shows, as one value; an address (the part after #) and back.

import type { Code, Metadata, Part, Quantity, Value } from "./backend";
import { fromText, toText } from "./float16";
import type { Vec3 } from "./volume";

export const VIEWS = ["latent", "counterfactual", "confidence"] as const;
export type View = (typeof VIEWS)[number];
export const PARTS: readonly Part[] = ["decoder", "posterior", "imputation"];

const ZOOMS = [1, 4, 16];

/** Where a code comes from. */
export type Start =
  | { kind: "prior" }
  | { kind: "study"; id: string }
  | { kind: "between"; from: string; to: string; share: number }
  | { kind: "peaks"; label: string };

export interface State {
  view: View;
  start: Start;
  code: Code | null; // null: as the start gives it
  metadata: Metadata | null; // null: as the start gives it
  changes: Record<string, Value | null>;
  quantity: Quantity; // of the Latent Slider
  zoom: number; // how much more sensitive the colours of a difference are than the map's
  parts: Part[];
  fade: number; // mean / sd below which the map fades out; 0: never
  mm: Vec3 | null;
}

export const FIRST: State = {
  view: "latent",
  start: { kind: "prior" },
  code: null,
  metadata: null,
  changes: {},
  quantity: "mean",
  zoom: 4,
  parts: [...PARTS],
  fade: 0,
  mm: null,
};

/** What the view's own map is: the others show the mean whatever the Latent Slider shows. */
export const quantityOf = ({ view, quantity }: State): Quantity => (view === "latent" ? quantity : "mean");

const round = (value: number): string => String(Number(value.toPrecision(4)));

function valueToText(value: Value | null): string {
  if (value === null) return "";
  if (typeof value === "number") return round(value);
  if (typeof value === "string") return value;
  return Object.entries(value)
    .filter(([, weight]) => weight >= 0.0005)
    .map(([name, weight]) => `${name}-${weight.toFixed(3)}`)
    .join("*");
}

function valueFromText(text: string): Value | null {
  if (text === "") return null;
  if (Number.isFinite(Number(text))) return Number(text);
  const parts = text.split("*").map((part) => /^(.+)-(\d+\.\d+)$/.exec(part));
  if (!parts.every((part) => part !== null)) return text;
  return Object.fromEntries(parts.map(([, name, weight]) => [name!, Number(weight)]));
}

export function toAddress(state: State): string {
  const terms = new URLSearchParams();
  if (state.view !== FIRST.view) terms.set("view", state.view);
  const { start } = state;
  if (start.kind === "study") terms.set("study", start.id);
  if (start.kind === "between") {
    terms.set("from", start.from);
    terms.set("to", start.to);
    terms.set("share", round(start.share));
  }
  if (start.kind === "peaks") terms.set("peaks", start.label);
  if (state.code) {
    terms.set("z", toText(state.code.mean));
    if (state.code.sd.some((sd) => sd > 0)) terms.set("sd", toText(state.code.sd));
  }
  if (state.metadata) {
    if (Object.keys(state.metadata).length === 0) terms.set("m", ""); // all unknown
    for (const [name, value] of Object.entries(state.metadata)) terms.set(`m.${name}`, valueToText(value));
  }
  for (const [name, value] of Object.entries(state.changes)) terms.set(`to.${name}`, valueToText(value));
  if (state.quantity !== FIRST.quantity) terms.set("show", state.quantity);
  if (state.zoom !== FIRST.zoom) terms.set("zoom", round(state.zoom));
  if (state.parts.length !== PARTS.length) terms.set("parts", state.parts.join("*"));
  if (state.fade > 0) terms.set("fade", round(state.fade));
  if (state.mm) terms.set("mm", state.mm.map((x) => x.toFixed(0)).join(","));
  return terms.toString();
}

/** The state of an address. What makes no sense in it is left out. */
export function fromAddress(text: string): State {
  const terms = new URLSearchParams(text);
  const state: State = { ...FIRST, changes: {} };
  const view = VIEWS.find((name) => name === terms.get("view"));
  if (view) state.view = view;
  state.start = startOf(terms);
  const mean = fromText(terms.get("z") ?? "");
  if (mean?.length) {
    const sd = fromText(terms.get("sd") ?? "");
    state.code = { mean, sd: sd?.length === mean.length ? sd : mean.map(() => 0) };
  }
  if (terms.has("m")) state.metadata = {};
  for (const [key, text_] of terms) {
    const value = valueFromText(text_);
    if (key.startsWith("m.") && value !== null) (state.metadata ??= {})[key.slice(2)] = value;
    if (key.startsWith("to.")) state.changes[key.slice(3)] = value;
  }
  if (terms.get("show") === "sd") state.quantity = "sd";
  state.zoom = ZOOMS.find((zoom) => zoom === Number(terms.get("zoom"))) ?? FIRST.zoom;
  const parts = terms.get("parts")?.split("*");
  if (parts) state.parts = PARTS.filter((part) => parts.includes(part));
  state.fade = Math.min(Math.max(Number(terms.get("fade")) || 0, 0), 5);
  const mm = terms.get("mm")?.split(",").map(Number);
  if (mm?.length === 3 && mm.every(Number.isFinite)) state.mm = mm as Vec3;
  return state;
}

function startOf(terms: URLSearchParams): Start {
  const [study, from, to, peaks] = ["study", "from", "to", "peaks"].map((name) => terms.get(name));
  if (study) return { kind: "study", id: study };
  if (from && to) {
    return { kind: "between", from, to, share: Math.min(Math.max(Number(terms.get("share")) || 0, 0), 1) };
  }
  return peaks ? { kind: "peaks", label: peaks } : { kind: "prior" };
}
