// Metadata as the model takes it: values by name to a vector and back, as atlas/metadata.py does.

import type { Imputed, Metadata, Value, Weights } from "./backend";

/** A row of the table that the model was trained with; `why` says why it cannot be set. */
export interface Row {
  name: string;
  kind: "category" | "number";
  unit: string;
  low: number | null;
  high: number | null;
  log: boolean;
  centre: number;
  spread: number;
  categories: string[];
  why: string | null;
  trained: [number, number] | null;
}

export interface Slot extends Row {
  from: number; // its first element in the vector
  width: number;
}

export class Fields {
  readonly slots: Slot[] = [];
  readonly width: number;

  constructor(rows: Row[]) {
    let from = 0;
    for (const row of rows) {
      const width = row.categories.length || 1;
      this.slots.push({ ...row, from, width });
      from += width;
    }
    this.width = from;
  }

  /** A field that can be set, or an error that says why not. */
  slot(name: string): Slot {
    const slot = this.slots.find((row) => row.name === name);
    if (!slot) throw new Error(`unknown metadata field ${name}; there are ${this.slots.map((row) => row.name).join(", ")}`);
    if (slot.why) throw new Error(`${name}: ${slot.why}, cannot be set`);
    return slot;
  }

  /** The vector, 0 where missing, and which of its elements are known. */
  encode(metadata: Record<string, Value | null>): { vector: Float32Array; known: Float32Array } {
    const vector = new Float32Array(this.width);
    const known = new Float32Array(this.width);
    for (const [name, value] of Object.entries(metadata)) {
      if (value === null) continue;
      const slot = this.slot(name);
      vector.set(elementsOf(slot, value), slot.from);
      known.fill(1, slot.from, slot.from + slot.width);
    }
    return { vector, known };
  }

  /** What the model took for a field that is missing. */
  imputed(slot: Slot, mean: Float32Array, logVariance: Float32Array): Imputed {
    const elements = Array.from(mean.subarray(slot.from, slot.from + slot.width));
    if (slot.kind === "category") {
      const weights = normalised(elements);
      return { weights: Object.fromEntries(slot.categories.map((name, i) => [name, Number(weights[i]!.toFixed(4))])) };
    }
    const x = elements[0]! * slot.spread;
    const free = slot.log ? Math.exp(Math.min(x + Math.log(slot.centre), 700)) : x + slot.centre;
    const value = Math.min(Math.max(free, slot.low ?? -Infinity), slot.high ?? Infinity);
    const sd = Math.exp(0.5 * logVariance[slot.from]!) * slot.spread;
    return { mean: value, sd: slot.log ? sd * value : sd };
  }

  /** Fields whose number lies outside what training saw. */
  extrapolated(metadata: Record<string, Value | null>): string[] {
    return Object.entries(metadata).filter(([name, value]) => {
      const { trained } = this.slot(name);
      return typeof value === "number" && trained !== null && (value < trained[0] || value > trained[1]);
    }).map(([name]) => name);
  }
}

/** Weights as shares: none below 0, together 1. */
export function normalised(weights: ArrayLike<number>): number[] {
  const positive = Array.from(weights, (weight) => Math.max(weight, 0));
  const total = Math.max(positive.reduce((sum, weight) => sum + weight, 0), 1e-12);
  return positive.map((weight) => weight / total);
}

function elementsOf(slot: Slot, value: Value): number[] {
  if (slot.kind === "category") return weightsOf(slot, typeof value === "string" ? { [value]: 1 } : value);
  const number = Number(value);
  const [low, high] = [slot.low ?? -Infinity, slot.high ?? Infinity];
  if (typeof value === "object" || !(number >= low && number <= high)) {
    throw new Error(`${slot.name}: ${String(value)} is outside its range ${low} to ${high} ${slot.unit}`.trim());
  }
  return [((slot.log ? Math.log(number) - Math.log(slot.centre) : number - slot.centre)) / slot.spread];
}

function weightsOf(slot: Slot, value: number | Weights): number[] {
  const weights: Weights = typeof value === "number" ? { [value]: 1 } : value;
  for (const [name, weight] of Object.entries(weights)) {
    if (!slot.categories.includes(name)) {
      throw new Error(`${slot.name}: unknown category ${name}; there are ${slot.categories.join(", ")}`);
    }
    if (!(weight >= 0 && weight < Infinity)) throw new Error(`${slot.name}: the weight of ${name} must be at least 0`);
  }
  const total = Object.values(weights).reduce((sum, weight) => sum + weight, 0);
  if (!(total > 0)) throw new Error(`${slot.name}: the weights sum to 0`);
  return slot.categories.map((name) => (weights[name] ?? 0) / total);
}

/** The metadata without what is null. */
export function without(metadata: Metadata, names: string[]): Metadata {
  return Object.fromEntries(Object.entries(metadata).filter(([name]) => !names.includes(name)));
}
