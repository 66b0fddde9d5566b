// The model itself, in a worker: it fetches runtime and graph, then answers one question after the
// other. One thread of WebAssembly: more need headers that a static host may not send.

import { env, InferenceSession, Tensor } from "onnxruntime-web/wasm";

import { unpack } from "./lzma";

export interface Packed {
  url: string;
  packed: number; // bytes on the wire
  bytes: number;
}

export type Question = { load: { runtime: Packed; model: Packed } } | { id: number; z: Float32Array; metadata: Float32Array; known: Float32Array };

export interface Decoded {
  density: Float32Array; // at the cells of the mask
  logVariance: Float32Array;
  imputedMean: Float32Array; // of the metadata vector
  imputedLogVariance: Float32Array;
}

export type Message =
  | { kind: "progress"; share: number }
  | { kind: "ready" }
  | { kind: "failed"; reason: string }
  | { kind: "decoded"; id: number; decoded: Decoded }
  | { kind: "refused"; id: number; reason: string };

const say = (message: Message, moved: Transferable[] = []): void => (self as unknown as Worker).postMessage(message, moved);

const lineOf = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split("\n")[0]!;

let session: InferenceSession | null = null;

async function fetchPacked({ url, packed, bytes }: Packed, onBytes: (count: number) => void): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(url);
  if (!response.ok || !response.body) throw new Error(`${url}: the host answered ${response.status}`);
  const here = new Uint8Array(packed);
  let at = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > packed) throw new Error(`${url}: is not the file that was exported`);
    here.set(value, at);
    at += value.length;
    onBytes(value.length);
  }
  if (at !== packed) throw new Error(`${url}: is cut off`);
  return unpack(here, bytes);
}

async function load(runtime: Packed, model: Packed): Promise<void> {
  let received = 0;
  const onBytes = (count: number): void => {
    received += count;
    say({ kind: "progress", share: received / (runtime.packed + model.packed) });
  };
  const [wasm, graph] = await Promise.all([fetchPacked(runtime, onBytes), fetchPacked(model, onBytes)]);
  env.wasm.numThreads = 1;
  env.wasm.wasmBinary = wasm.buffer;
  env.logLevel = "error";
  session = await InferenceSession.create(graph, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
}

async function decode(z: Float32Array, metadata: Float32Array, known: Float32Array): Promise<Decoded> {
  const row = (values: Float32Array): Tensor => new Tensor("float32", values, [1, values.length]);
  const answer = await session!.run({ z: row(z), metadata: row(metadata), known: row(known) });
  const values = (name: string): Float32Array => answer[name]!.data as Float32Array;
  return {
    density: values("density"),
    logVariance: values("log_variance"),
    imputedMean: values("imputed_mean"),
    imputedLogVariance: values("imputed_log_variance"),
  };
}

async function answer(question: Question): Promise<void> {
  if ("load" in question) {
    try {
      await load(question.load.runtime, question.load.model);
      say({ kind: "ready" });
    } catch (error) {
      say({ kind: "failed", reason: lineOf(error) });
    }
    return;
  }
  try {
    const decoded = await decode(question.z, question.metadata, question.known);
    say({ kind: "decoded", id: question.id, decoded });
  } catch (error) {
    say({ kind: "refused", id: question.id, reason: lineOf(error) });
  }
}

// One after the other: the runtime takes one question at a time.
let line = Promise.resolve();
self.addEventListener("message", (event: MessageEvent<Question>) => {
  line = line.then(() => answer(event.data));
});
