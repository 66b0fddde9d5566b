// The server of `atlas serve` as a back end: one method a route.

import type {
  Answer, Backend, Changes, Effect, Entry, Metadata, Model, Part, Peak, Point, Quantity, Query, Regions, Strip,
  Study, StudyRow,
} from "./backend";
import { fromFloat16 } from "./float16";
import { gridOf, type Vec3, type Volume } from "./volume";

export class Server implements Backend {
  // The server drops what a client no longer waits for.
  private readonly client = crypto.randomUUID?.() ?? String(Math.random());

  whyNot(): null {
    return null;
  }

  async model(): Promise<Model> {
    return (await (await this.ask("api/model")).json()) as Model;
  }

  template(): string {
    return "api/template.nii.gz";
  }

  async regions(): Promise<Regions | null> {
    const { names, source } = (await (await this.ask("api/regions")).json()) as Omit<Regions, "labels">;
    const answer = await this.ask("api/regions.bin");
    const grid = gridOf(header(answer, "Shape"), header(answer, "Affine"));
    return { names, source, labels: { ...grid, values: new Uint8Array(await answer.arrayBuffer()) } };
  }

  async studies(query: Query): Promise<{ total: number; studies: StudyRow[] }> {
    const terms = new URLSearchParams({ q: query.q, limit: String(query.limit) });
    if (query.category) terms.set("category", query.category);
    if (query.from !== null) terms.set("from", String(query.from));
    if (query.to !== null) terms.set("to", String(query.to));
    return (await (await this.ask(`api/studies?${terms.toString()}`)).json()) as { total: number; studies: StudyRow[] };
  }

  async study(id: string): Promise<Study> {
    return (await (await this.ask(`api/studies/${encodeURIComponent(id)}`)).json()) as Study;
  }

  async encode(peaks: Vec3[], metadata: Metadata): Promise<Entry> {
    const { code, peaks: count } = (await (await this.post("encode", { peaks, metadata })).json()) as Entry;
    return { label: `${count} peaks`, peaks: count, code };
  }

  async encodeFile(file: File): Promise<{ entries: Entry[]; note: string }> {
    const answer = await this.ask(`api/encode-file?name=${encodeURIComponent(file.name)}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: file,
    });
    return (await answer.json()) as { entries: Entry[]; note: string };
  }

  decode({ z, metadata }: Point, quantity: Quantity): Promise<Answer> {
    return this.maps("decode", { z, metadata, quantity });
  }

  counterfactual({ z, metadata }: Point, changes: Changes): Promise<Answer> {
    return this.maps("counterfactual", { z, metadata, changes });
  }

  async strip({ z, metadata }: Point, field: string, values: number[], axis: 0 | 1 | 2, mm: number): Promise<Strip> {
    const answer = await this.post("strip", { z, metadata, field, values, axis, mm });
    const shape = header<[number, number]>(answer, "Shape");
    const size = shape[0] * shape[1];
    const buffer = await answer.arrayBuffer();
    const scales = header<number[]>(answer, "Scales");
    return { shape, slices: scales.map((scale, i) => fromFloat16(buffer, scale, 2 * i * size, size)) };
  }

  async effect({ z, metadata }: Point, changes: Changes): Promise<Effect> {
    return (await (await this.post("effect", { z, metadata, changes })).json()) as Effect;
  }

  uncertainty(point: Point, samples: number): Promise<Answer> {
    return this.maps("uncertainty", { ...point, samples });
  }

  async peaks(point: Point, parts: Part[], most: number): Promise<Peak[]> {
    const answer = await this.post("peaks", { ...point, parts, most });
    return ((await answer.json()) as { peaks: Peak[] }).peaks;
  }

  async nifti({ z, metadata }: Point, changes: Changes | null, quantity: Quantity | "difference"): Promise<Blob> {
    return (await this.post("nifti", { z, metadata, changes, quantity })).blob();
  }

  private async maps(route: string, body: object): Promise<Answer> {
    const start = performance.now();
    const answer = await this.post(route, body);
    const buffer = await answer.arrayBuffer();
    const grid = gridOf(header(answer, "Shape"), header(answer, "Affine"));
    const size = grid.shape[0] * grid.shape[1] * grid.shape[2];
    const scales = header<number[]>(answer, "Scales");
    const maps: Record<string, Volume> = {};
    header<string[]>(answer, "Names").forEach((name, i) => {
      maps[name] = { ...grid, values: fromFloat16(buffer, scales[i], 2 * i * size, size) };
    });
    const milliseconds = performance.now() - start;
    return { maps, imputed: header(answer, "Imputed"), extrapolated: header(answer, "Extrapolated"), milliseconds };
  }

  private post(route: string, body: object): Promise<Response> {
    return this.ask(`api/${route}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  }

  private async ask(path: string, init: RequestInit = {}): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(path, { ...init, headers: { ...init.headers, "X-Atlas-Client": this.client } });
    } catch {
      throw new Error("The server does not answer. Is atlas serve still running?");
    }
    if (response.ok) return response;
    const body: unknown = await response.json().catch(() => null);
    const detail = (body as { detail?: unknown } | null)?.detail;
    throw new Error(typeof detail === "string" ? detail : `The server answered ${response.status}.`);
  }
}

function header<T>(answer: Response, name: string): T {
  return JSON.parse(answer.headers.get(`X-Atlas-${name}`) ?? "null") as T;
}
