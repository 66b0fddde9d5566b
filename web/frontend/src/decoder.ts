// The model itself, in a worker: it fetches runtime and graph, then answers one question after the
// other. On the graphics card where the browser lends it, else in one thread of WebAssembly: more
// need headers that a static host may not send.

import type * as Ort from "onnxruntime-web";

import { unpack } from "./lzma";

export interface Packed {
  url: string;
  packed: number; // bytes on the wire
  bytes: number;
}

export type Device = "webgpu" | "wasm";

export interface Runtime extends Packed {
  device: Device;
}

/** `runtimes`: the first that works is taken. */
export type Question = { load: { runtimes: Runtime[]; model: Packed; sizes: Sizes } } | { id: number; z: Float32Array; metadata: Float32Array; known: Float32Array };

export interface Sizes {
  z: number;
  metadata: number;
}

export interface Decoded {
  density: Float32Array; // at the cells of the mask
  logVariance: Float32Array;
  imputedMean: Float32Array; // of the metadata vector
  imputedLogVariance: Float32Array;
}

export type Message =
  | { kind: "progress"; share: number }
  | { kind: "ready"; device: Device }
  | { kind: "failed"; reason: string }
  | { kind: "decoded"; id: number; decoded: Decoded }
  | { kind: "refused"; id: number; reason: string };

const say = (message: Message, moved: Transferable[] = []): void => (self as unknown as Worker).postMessage(message, moved);

const lineOf = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split("\n")[0]!;

let ort: typeof Ort;
let session: Ort.InferenceSession;

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

async function load(runtimes: Runtime[], model: Packed, sizes: Sizes): Promise<Device> {
  let received = 0;
  const expected = runtimes[0]!.packed + model.packed;
  const onBytes = (count: number): void => {
    received += count;
    say({ kind: "progress", share: Math.min(received / expected, 1) });
  };
  const fetched = fetchPacked(model, onBytes);
  fetched.catch(() => undefined); // told below, where the graph is needed
  for (const [i, runtime] of runtimes.entries()) {
    try {
      const wasm = await fetchPacked(runtime, onBytes);
      await start(runtime.device, wasm, await fetched);
      await decode(new Float32Array(sizes.z), new Float32Array(sizes.metadata), new Float32Array(sizes.metadata));
      return runtime.device;
    } catch (error) {
      if (i === runtimes.length - 1) throw error;
    }
  }
  throw new Error("no runtime");
}

async function start(device: Device, wasm: Uint8Array<ArrayBuffer>, graph: Uint8Array): Promise<void> {
  ort = device === "webgpu" ? await import("onnxruntime-web/jspi") : await import("onnxruntime-web/wasm");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(graph, { executionProviders: [device], graphOptimizationLevel: "all", logSeverityLevel: 3 });
}

async function decode(z: Float32Array, metadata: Float32Array, known: Float32Array): Promise<Decoded> {
  const row = (values: Float32Array): Ort.Tensor => new ort.Tensor("float32", values, [1, values.length]);
  const answer = await session.run({ z: row(z), metadata: row(metadata), known: row(known) });
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
      const { runtimes, model, sizes } = question.load;
      say({ kind: "ready", device: await load(runtimes, model, sizes) });
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
