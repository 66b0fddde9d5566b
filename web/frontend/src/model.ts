// The worker that holds the model, as a function from code and metadata to arrays.

import type { Decoded, Device, Message, Packed, Question, Runtime, Sizes } from "./decoder";

interface Waiting {
  resolve(decoded: Decoded): void;
  reject(error: Error): void;
}

export class LocalModel {
  private readonly worker = new Worker(new URL("./decoder.ts", import.meta.url), { type: "module" });
  private readonly waiting = new Map<number, Waiting>();
  private failed: Error | null = null;
  private asked = 0;
  device: Device | null = null; // null: not here yet

  constructor(runtimes: Runtime[], model: Packed, sizes: Sizes, onProgress: (text: string | null) => void) {
    const megabytes = ((runtimes[0]!.packed + model.packed) / 1e6).toFixed(1);
    this.worker.addEventListener("error", (event) => this.fail(event.message || "the decoder could not be started"));
    this.worker.addEventListener("message", ({ data }: MessageEvent<Message>) => {
      if (this.failed) return; // the other file may still be coming
      if (data.kind === "progress") {
        const share = Math.floor(100 * data.share);
        onProgress(share < 100 ? `Loading the model: ${share} % of ${megabytes} MB` : "Starting the model …");
      } else if (data.kind === "ready") {
        this.device = data.device;
        onProgress(null);
      } else if (data.kind === "failed") this.fail(data.reason);
      else this.settle(data);
    });
    this.send({ load: { runtimes, model, sizes } });
  }

  run(z: Float32Array, metadata: Float32Array, known: Float32Array): Promise<Decoded> {
    if (this.failed) return Promise.reject(this.failed);
    const id = this.asked++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.send({ id, z, metadata, known });
    });
  }

  private send(question: Question): void {
    this.worker.postMessage(question);
  }

  private settle(message: Extract<Message, { id: number }>): void {
    const { resolve, reject } = this.waiting.get(message.id)!;
    this.waiting.delete(message.id);
    if (message.kind === "decoded") resolve(message.decoded);
    else reject(new Error(`The model failed: ${message.reason}. If it goes on, reload the page.`));
  }

  private fail(reason: string): void {
    this.failed = new Error(`The model could not be loaded: ${reason}. Reload the page to try again.`);
    for (const { reject } of this.waiting.values()) reject(this.failed);
    this.waiting.clear();
  }
}

/** Whether there is a graphics card to decode on: one in software is slower than WebAssembly. */
export async function hasGpu(): Promise<boolean> {
  if (!("Suspending" in WebAssembly) || !("gpu" in navigator)) return false;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter !== null && !adapter.info.isFallbackAdapter;
}
