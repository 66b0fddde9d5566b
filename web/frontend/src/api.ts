// The server's API, typed. Errors carry one line meant for the reader.

import { gridOf, type Volume } from "./volume";

export type Quantity = "mean" | "sd";
export type Value = number | string;

export interface Direction {
  index: number;
  activity: number;
  sd: number;
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
  latent: { size: number; directions: Direction[] };
  fields: Field[];
  grid: { shape: number[]; affine: number[][] };
  display: { low: number; high: number };
  conditioned: boolean;
}

export type Imputed = { mean: number; sd: number } | { weights: Record<string, number> };

export interface DecodeRequest {
  z: number[] | null;
  metadata: Record<string, Value>;
  quantity: Quantity;
}

export interface Decoded {
  volume: Volume;
  imputed: Record<string, Imputed>;
  quantity: Quantity;
  milliseconds: number;
}

async function ask(path: string, init?: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new Error("The server does not answer. Is atlas serve still running?");
  }
  if (!response.ok) {
    const body: unknown = await response.json().catch(() => null);
    const detail = (body as { detail?: unknown } | null)?.detail;
    throw new Error(typeof detail === "string" ? detail : `The server answered ${response.status}.`);
  }
  return response;
}

export async function fetchModel(): Promise<Model> {
  return (await (await ask("api/model")).json()) as Model;
}

export async function decode(request: DecodeRequest): Promise<Decoded> {
  const start = performance.now();
  const response = await ask("api/decode", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
  });
  const header = (name: string): string => response.headers.get(`X-Atlas-${name}`) ?? "null";
  const grid = gridOf(JSON.parse(header("Shape")), JSON.parse(header("Affine")));
  const values = fromFloat16(await response.arrayBuffer(), Number(header("Scale")));
  return {
    volume: { ...grid, values },
    imputed: JSON.parse(header("Imputed")),
    quantity: request.quantity,
    milliseconds: performance.now() - start,
  };
}

// Every float16 there is, by its bits: quicker than decoding, and older browsers have no
// Float16Array.
const FLOAT16 = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

function fromFloat16(buffer: ArrayBuffer, scale: number): Float32Array {
  const view = new DataView(buffer);
  const values = new Float32Array(buffer.byteLength / 2);
  for (let i = 0; i < values.length; i++) values[i] = FLOAT16[view.getUint16(2 * i, true)]! * scale;
  return values;
}
