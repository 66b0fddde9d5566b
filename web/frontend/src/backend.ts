// What the page asks for, whoever answers: the server (server.ts) or the decoder in this very tab
// (tab.ts). Errors carry one line meant for the reader.

import type { Vec3, Volume } from "./volume";

export type Quantity = "mean" | "sd";
export type Weights = Record<string, number>; // of the categories of a field
export type Value = number | string | Weights;
export type Metadata = Record<string, Value>;

export interface Direction {
  index: number;
  activity: number;
  sd: number;
  topics: { label: string; r: number }[]; // what it goes along with in the training studies
}

export interface Field {
  name: string;
  label: string;
  kind: "category" | "number";
  unit: string | null;
  low: number | null;
  high: number | null;
  step: number | null;
  scale: "linear" | "log";
  categories: { value: string; label: string }[] | null;
  available: boolean;
  reason: string | null;
  trained: [number, number] | null;
  help: string;
}

export interface Model {
  name: string;
  unit: string;
  version: string;
  run: string | null; // folder of the run, for Atlas.load(); null: the released model
  latent: { size: number; directions: Direction[] };
  fields: Field[];
  grid: { shape: number[]; affine: number[][] };
  display: { low: number; high: number };
  conditioned: boolean;
  coverage: { level: number; covered: number }[] | null;
  studies: { count: number; source: string | null; reason: string | null };
  regions: { available: boolean; reason: string | null };
}

/** A place in the latent space: a code, how well it is known (null: exactly), the metadata. */
export interface Point {
  z: number[] | null; // null: the centre
  sd: number[] | null;
  metadata: Metadata;
}

export interface Code {
  mean: number[];
  sd: number[];
}

export interface StudyRow {
  id: string;
  title: string;
  authors: string;
  year: number | null;
  category: string | null;
  peaks: number;
}

export interface Study extends StudyRow {
  metadata: Metadata;
  code: Code;
}

export interface Query {
  q: string;
  category: string | null;
  from: number | null;
  to: number | null;
  limit: number;
}

export interface Entry {
  label: string;
  peaks: number;
  code: Code;
}

export type Imputed = { mean: number; sd: number } | { weights: Weights };

/** Maps by name, and what went into them. */
export interface Answer {
  maps: Record<string, Volume>;
  imputed: Record<string, Imputed>;
  extrapolated: string[];
  milliseconds: number;
}

/** One slice of the map for each value of a field, row by row from the bottom left. */
export interface Strip {
  shape: [number, number];
  slices: Float32Array[];
}

export interface Effect {
  rms: number;
  share: number; // of the factual map's own rms
  field: string;
  statistic: number | null;
  null: [number, number, number] | null; // 2.5, 50 and 97.5 %
  histogram: { edges: number[]; counts: number[] } | null;
  p: number | null;
  studies: number;
  sentence: string;
}

export type Part = "decoder" | "posterior" | "imputation";

export interface Peak {
  mm: Vec3;
  value: number;
  low: number;
  high: number;
  region: string | null;
}

export interface Regions {
  names: Record<string, string>;
  source: string;
  labels: { shape: Vec3; origin: Vec3; step: Vec3; values: Uint8Array };
}

export type Changes = Record<string, Value | null>; // null: back to the imputer

export interface Backend {
  /** Null, or why this back end cannot do it, in a sentence. */
  whyNot(what: "encode" | "effect" | "nifti"): string | null;
  model(): Promise<Model>;
  template(): string; // address of the NIfTI template
  regions(): Promise<Regions | null>;
  studies(query: Query): Promise<{ total: number; studies: StudyRow[] }>;
  study(id: string): Promise<Study>;
  encode(peaks: Vec3[], metadata: Metadata): Promise<Entry>;
  encodeFile(file: File): Promise<{ entries: Entry[]; note: string }>;
  decode(point: Point, quantity: Quantity): Promise<Answer>; // "mean" or "sd"
  /** "factual", "counterfactual", "difference" */
  counterfactual(point: Point, changes: Changes): Promise<Answer>;
  strip(point: Point, field: string, values: number[], axis: 0 | 1 | 2, mm: number): Promise<Strip>;
  effect(point: Point, changes: Changes): Promise<Effect>;
  /** "mean", and the standard deviations "decoder", "posterior", "imputation" */
  uncertainty(point: Point, samples: number): Promise<Answer>;
  peaks(point: Point, parts: Part[], most: number): Promise<Peak[]>;
  nifti(point: Point, changes: Changes | null, quantity: Quantity | "difference"): Promise<Blob>;
}
