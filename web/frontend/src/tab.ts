// The decoder in this very tab as a back end: what `atlas export --html` wrote beside the page, asked
// as the server would be. The names and steps are those of atlas/inference.py and atlas/explore.

import onGpu from "onnxruntime-web/ort-wasm-simd-threaded.jspi.wasm?url";
import inWasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

import type {
  Answer, Backend, Changes, Effect, Entry, Imputed, Metadata, Model, Part, Peak, Point, Quantity, Query, Regions,
  Strip, Study, StudyRow,
} from "./backend";
import type { Decoded, Packed, Runtime } from "./decoder";
import { Fields, normalised, without, type Row } from "./fields";
import { unpack } from "./lzma";
import { hasGpu, LocalModel } from "./model";
import { toNifti } from "./nifti";
import { normals } from "./normals";
import { highest, regionAt, slice } from "./places";
import { gridOf, type Grid, type Vec3, type Volume } from "./volume";

const PART_NAMES: readonly Part[] = ["decoder", "posterior", "imputation"];
const Q90 = 1.6448536269514722; // of the normal law, for intervals of 90 %
const Z_LIMIT = 1e3;
const NO_ENCODER = "This page decodes; to read peaks it would need the encoder. Open it with atlas serve.";
const NO_STUDIES = "The permutation null asks the held-out studies, which this page does not carry. Open it with atlas serve.";

interface Sizes {
  packed: number;
  bytes: number;
}

/** atlas.json */
export interface Contents {
  model: Model;
  fields: Row[];
  mask: string; // packed bits in base64, C order
  files: { model: Sizes; wasm: Sizes; webgpu?: Sizes; regions?: Sizes }; // no webgpu: it cannot run this model
  regions: { names: Record<string, string>; source: string; shape: number[]; affine: number[][] } | null;
}

/** A code with complete metadata, and what it decodes to. */
interface Place {
  z: Float32Array;
  metadata: Float32Array;
  decoded: Decoded;
  imputed: Record<string, Imputed>;
}

export class Tab implements Backend {
  private readonly fields: Fields;
  private readonly grid: Grid;
  private readonly cells: Uint32Array; // of the mask, in volumes with x fastest
  private readonly everything: Float32Array;
  private listed: Promise<Study[]> | null = null;
  private labels: Promise<Regions | null> | null = null;
  private last: { key: string; answer: Promise<Answer> } | null = null;

  constructor(private readonly contents: Contents, private readonly local: LocalModel) {
    this.fields = new Fields(contents.fields);
    this.grid = gridOf(contents.model.grid.shape, contents.model.grid.affine);
    this.cells = cellsOf(contents.mask, this.grid.shape);
    this.everything = new Float32Array(this.fields.width).fill(1);
  }

  static async open(onProgress: (text: string | null) => void): Promise<Tab> {
    const contents = (await (await ask("atlas.json")).json()) as Contents;
    const { files } = contents;
    const packed = (url: string, sizes: Sizes): Packed => ({ url: new URL(`${url}.lzma`, document.baseURI).href, ...sizes });
    const runtimes: Runtime[] = [{ device: "wasm", ...packed(inWasm, files.wasm) }];
    if (files.webgpu && (await hasGpu())) runtimes.unshift({ device: "webgpu", ...packed(onGpu, files.webgpu) });
    const sizes = { z: contents.model.latent.size, metadata: new Fields(contents.fields).width };
    const local = new LocalModel(runtimes, packed("model.onnx", files.model), sizes, onProgress);
    return new Tab(contents, local);
  }

  whyNot(what: "encode" | "effect" | "nifti"): string | null {
    return what === "encode" ? NO_ENCODER : what === "effect" ? NO_STUDIES : null;
  }

  model(): Promise<Model> {
    return Promise.resolve(this.contents.model);
  }

  template(): string {
    return "template.nii.gz";
  }

  regions(): Promise<Regions | null> {
    return (this.labels ??= this.readRegions());
  }

  async studies({ q, category, from, to, limit }: Query): Promise<{ total: number; studies: StudyRow[] }> {
    const words = plain(q).split(/\s+/).filter(Boolean);
    const anytime = from === null && to === null;
    const found = (await this.list()).filter((study) => {
      const text = plain(`${study.id} ${study.title} ${study.authors}`);
      const inTime = study.year !== null && study.year >= (from ?? -Infinity) && study.year <= (to ?? Infinity);
      return words.every((word) => text.includes(word)) && (!category || study.category === category) && (anytime || inTime);
    });
    return { total: found.length, studies: found.slice(0, limit) };
  }

  async study(id: string): Promise<Study> {
    const found = (await this.list()).find((study) => study.id === id);
    if (!found) throw new Error(`no study ${id} in ${this.contents.model.studies.source ?? "this page"}`);
    return found;
  }

  encode(): Promise<Entry> {
    return Promise.reject(new Error(NO_ENCODER));
  }

  encodeFile(): Promise<{ entries: Entry[]; note: string }> {
    return Promise.reject(new Error(NO_ENCODER));
  }

  effect(): Promise<Effect> {
    return Promise.reject(new Error(NO_STUDIES));
  }

  async decode({ z, metadata }: Point, quantity: Quantity): Promise<Answer> {
    const start = performance.now();
    const { decoded, imputed } = await this.place(this.code(z), metadata);
    const values = quantity === "mean" ? decoded.density : sdOf(decoded);
    return this.answer({ [quantity]: values }, imputed, metadata, start);
  }

  async counterfactual({ z, metadata }: Point, changes: Changes): Promise<Answer> {
    const start = performance.now();
    const before = await this.place(this.code(z), metadata);
    const after = await this.move(before, metadata, changes);
    const [factual, counterfactual] = [before.decoded.density, after.decoded.density];
    const difference = counterfactual.map((value, i) => value - factual[i]!);
    const answer = this.answer({ factual, counterfactual, difference }, { ...before.imputed, ...after.imputed }, metadata, start);
    const beyond = this.fields.extrapolated({ ...metadata, ...changes });
    return { ...answer, extrapolated: [...new Set([...answer.extrapolated, ...beyond])] }; // of either side
  }

  async strip({ z, metadata }: Point, field: string, values: number[], axis: 0 | 1 | 2, mm: number): Promise<Strip> {
    const here = await this.place(this.code(z), metadata);
    const slices: Float32Array[] = [];
    for (const value of values) {
      const there = await this.move(here, metadata, { [field]: value });
      slices.push(slice(this.volume(there.decoded.density), axis, mm));
    }
    const { shape } = this.grid;
    return { shape: shape.filter((_, a) => a !== axis) as [number, number], slices };
  }

  uncertainty(point: Point, samples: number): Promise<Answer> {
    const key = JSON.stringify([point, samples]);
    if (this.last?.key !== key) { // the table of peaks asks the same again
      const answer = this.parts(point, samples);
      answer.catch(() => (this.last = null));
      this.last = { key, answer };
    }
    return this.last.answer;
  }

  async peaks(point: Point, parts: Part[], most: number): Promise<Peak[]> {
    const { maps } = await this.uncertainty(point, 24);
    const regions = await this.regions();
    return highest(maps["mean"]!, most).map(({ index, mm, value }) => {
      const half = Q90 * Math.sqrt(parts.reduce((sum, part) => sum + maps[part]!.values[index]! ** 2, 0));
      return { mm, value, low: Math.max(value - half, 0), high: value + half, region: regions && regionAt(regions, mm) };
    });
  }

  async nifti(point: Point, changes: Changes | null, quantity: Quantity | "difference"): Promise<Blob> {
    if (quantity === "difference") {
      return toNifti((await this.counterfactual(point, changes ?? {})).maps["difference"]!);
    }
    const here = await this.place(this.code(point.z), point.metadata);
    const { decoded } = changes ? await this.move(here, point.metadata, changes) : here;
    return toNifti(this.volume(quantity === "mean" ? decoded.density : sdOf(decoded)));
  }

  // ------------------------------------------------------------------ places

  private code(z: number[] | null): Float32Array {
    const { size } = this.contents.model.latent;
    if (z && (z.length !== size || z.some((x) => !(Math.abs(x) <= Z_LIMIT)))) {
      throw new Error(`z: this model's codes have ${size} numbers between -${Z_LIMIT} and ${Z_LIMIT}`);
    }
    return Float32Array.from(z ?? new Array<number>(size).fill(0));
  }

  /** Impute what the metadata lack, and decode. */
  private async place(z: Float32Array, metadata: Metadata): Promise<Place> {
    const { vector, known } = this.fields.encode(metadata);
    const decoded = await this.local.run(z, vector, known);
    const imputed: Record<string, Imputed> = {};
    for (const slot of this.fields.slots) {
      if (slot.why || known[slot.from]) continue;
      imputed[slot.name] = this.fields.imputed(slot, decoded.imputedMean, decoded.imputedLogVariance);
    }
    const complete = vector.map((value, i) => (known[i] ? value : decoded.imputedMean[i]!));
    return { z, metadata: complete, decoded, imputed };
  }

  /** The same code with changed fields; all else as it was imputed there. Null: back to the imputer. */
  private async move(here: Place, metadata: Metadata, changes: Changes): Promise<Place> {
    const { vector, known } = this.fields.encode(changes);
    const moved = here.metadata.map((value, i) => (known[i] ? vector[i]! : value));
    const imputed = Object.fromEntries(Object.entries(here.imputed).filter(([name]) => (changes[name] ?? null) === null));
    const freed = Object.keys(changes).filter((name) => changes[name] === null && name in metadata);
    if (freed.length) {
      const again = await this.place(here.z, without(metadata, freed));
      for (const slot of this.fields.slots.filter(({ name }) => freed.includes(name))) {
        moved.set(again.metadata.subarray(slot.from, slot.from + slot.width), slot.from);
        imputed[slot.name] = again.imputed[slot.name]!;
      }
    }
    const same = moved.every((value, i) => value === here.metadata[i]);
    const decoded = same ? here.decoded : await this.local.run(here.z, moved, this.everything);
    return { z: here.z, metadata: moved, decoded, imputed };
  }

  /** The law of total variance, part by part, as atlas/explore/uncertainty.py has it. */
  private async parts({ z, sd, metadata }: Point, samples: number): Promise<Answer> {
    const start = performance.now();
    const here = await this.place(this.code(z), metadata);
    const draw = normals(0);
    let decoder = here.decoded.logVariance.map(Math.exp);
    let posterior = new Float32Array(decoder.length);
    if (sd?.some((x) => x > 0)) {
      const moments = new Moments(decoder.length);
      for (let i = 0; i < samples; i++) {
        moments.add((await this.place(here.z.map((x, k) => x + sd[k]! * draw()), metadata)).decoded);
      }
      [decoder, posterior] = [moments.variance(), moments.scatter()];
    }
    let imputation = new Float32Array(decoder.length);
    const free = this.fields.slots.filter((slot) => slot.why === null && !(slot.name in metadata));
    if (free.length) {
      const moments = new Moments(decoder.length);
      for (let i = 0; i < samples; i++) {
        const drawn = here.metadata.slice();
        for (const { from, width, kind } of free) {
          const { imputedMean, imputedLogVariance } = here.decoded;
          const values = Array.from({ length: width }, (_, k) =>
            imputedMean[from + k]! + Math.exp(0.5 * imputedLogVariance[from + k]!) * draw());
          drawn.set(kind === "category" ? normalised(values) : values, from);
        }
        moments.add(await this.local.run(here.z, drawn, this.everything));
      }
      imputation = moments.scatter();
    }
    const sds = [decoder, posterior, imputation].map((variance) => variance.map(Math.sqrt));
    const named = Object.fromEntries(PART_NAMES.map((name, i) => [name, sds[i]!]));
    return this.answer({ mean: here.decoded.density, ...named }, here.imputed, metadata, start);
  }

  // ------------------------------------------------------------------ maps and files

  private volume(values: Float32Array): Volume {
    const [x, y, z] = this.grid.shape;
    const all = new Float32Array(x * y * z);
    this.cells.forEach((cell, i) => (all[cell] = values[i]!));
    return { ...this.grid, values: all };
  }

  private answer(
    arrays: Record<string, Float32Array>, imputed: Record<string, Imputed>, metadata: Changes, start: number,
  ): Answer {
    const maps = Object.fromEntries(Object.entries(arrays).map(([name, values]) => {
      if (!values.every(Number.isFinite)) {
        throw new Error("the decoded map is not finite at this point; move closer to the centre");
      }
      return [name, this.volume(values)];
    }));
    const extrapolated = this.fields.extrapolated(metadata);
    return { maps, imputed, extrapolated, milliseconds: performance.now() - start };
  }

  private list(): Promise<Study[]> {
    const { reason } = this.contents.model.studies;
    if (reason) return Promise.reject(new Error(reason));
    return (this.listed ??= ask("studies.json").then(async (answer) => (await answer.json()) as Study[]));
  }

  private async readRegions(): Promise<Regions | null> {
    const { regions, files } = this.contents;
    if (!regions || !files.regions) return null;
    const packed = new Uint8Array(await (await ask("regions.bin.lzma")).arrayBuffer());
    const labels = { ...gridOf(regions.shape, regions.affine), values: unpack(packed, files.regions.bytes) };
    return { names: regions.names, source: regions.source, labels };
  }
}

/** Mean of the variances and variance of the means over draws (Welford's update). */
class Moments {
  private count = 0;
  private readonly variances: Float64Array;
  private readonly centre: Float64Array;
  private readonly squares: Float64Array;

  constructor(size: number) {
    [this.variances, this.centre, this.squares] = [0, 1, 2].map(() => new Float64Array(size)) as [
      Float64Array, Float64Array, Float64Array];
  }

  add({ density, logVariance }: Decoded): void {
    this.count += 1;
    for (let i = 0; i < density.length; i++) {
      this.variances[i]! += Math.exp(logVariance[i]!);
      const gap = density[i]! - this.centre[i]!;
      this.centre[i]! += gap / this.count;
      this.squares[i]! += gap * (density[i]! - this.centre[i]!);
    }
  }

  variance(): Float32Array<ArrayBuffer> {
    return Float32Array.from(this.variances, (sum) => sum / this.count);
  }

  scatter(): Float32Array<ArrayBuffer> {
    return Float32Array.from(this.squares, (sum) => sum / (this.count - 1));
  }
}

const sdOf = ({ logVariance }: Decoded): Float32Array => logVariance.map((value) => Math.exp(0.5 * value));

/** Case and accents do not matter to a search. */
function plain(text: string): string {
  return text.toLowerCase().normalize("NFKD").replace(/\p{M}/gu, "");
}

/** Where the mask's cells, in C order, lie in a volume with x fastest. */
function cellsOf(mask: string, [nx, ny, nz]: Vec3): Uint32Array {
  const bits = Uint8Array.from(atob(mask), (letter) => letter.charCodeAt(0));
  const cells: number[] = [];
  for (let c = 0; c < nx * ny * nz; c++) {
    if (!((bits[c >> 3]! >> (7 - (c & 7))) & 1)) continue;
    const [x, y, z] = [Math.floor(c / (ny * nz)), Math.floor(c / nz) % ny, c % nz];
    cells.push(x + nx * (y + ny * z));
  }
  return Uint32Array.from(cells);
}

async function ask(path: string): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path);
  } catch {
    throw new Error(`${path} could not be fetched. A folder opened as a file: ask a web server for it, as in python -m http.server.`);
  }
  if (!response.ok) throw new Error(`${path}: the host answered ${response.status}. Is the folder complete?`);
  return response;
}
