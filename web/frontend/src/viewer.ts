// The one file that knows NiiVue (0.69.0, pinned): slices and a 3-D view of the template with one map
// over it.
//
// A new map replaces the overlay's array and refreshes that layer alone (`refreshLayers` is
// internal to NiiVue, ten times quicker than removing and adding a volume, and holds for this
// version). NiiVue samples an overlay by nearest neighbour and knows only its own ways to fade one
// out, so the map is interpolated onto the template's grid and coloured here, and NiiVue gets
// colours.

import { DRAG_MODE, NVImage, Niivue, SLICE_TYPE } from "@niivue/niivue";

import { colour, type Palette } from "./colours";
import { gridOf, resample, type Grid, type Vec3, type Volume } from "./volume";

type Layout = Parameters<Niivue["setCustomLayout"]>[0];
type Tile = { sliceType: SLICE_TYPE; width: number; height: number };

const SLOW_FRAME = 60; // ms; where the 3-D view makes a frame slower, it rests while a slider moves
const GAP = 8; // CSS pixels between the tiles
const RGBA = 2304; // NIfTI's code

export interface Shown {
  map: Volume;
  palette: Palette;
  limits: readonly [number, number];
  opacity?: Float32Array | null; // on the template's grid, 0 to 1
}

export function hasWebGL2(): boolean {
  return document.createElement("canvas").getContext("webgl2") !== null;
}

export class Viewer {
  private moving = true; // the first map does not wait for the 3-D view
  private slow = true; // until it is measured
  private measured = false;
  private solid = true; // whether there is room for the 3-D view

  private constructor(
    private readonly nv: Niivue,
    private readonly overlay: NVImage,
    readonly template: Grid,
    private readonly stage: HTMLElement,
  ) {}

  static async create(canvas: HTMLCanvasElement, template: string, onMove: (mm: Vec3) => void): Promise<Viewer> {
    const nv = new Niivue({
      logLevel: "error",
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.none, // the right button would change the template's contrast
      isColorbar: false,
      crosshairWidth: 1,
      crosshairWidthUnit: "mm",
      crosshairGap: 6,
      backColor: [0, 0, 0, 1], // as around the template's brain, in every theme
      fontColor: [0.75, 0.78, 0.82, 1],
      crosshairColor: [0.35, 0.85, 1, 0.8],
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
      loadingText: "",
    });
    await nv.attachToCanvas(canvas);
    await nv.loadVolumes([{ url: template, name: "template.nii.gz", colormap: "gray", cal_min: 20, cal_max: 260 }]);
    const background = nv.volumes[0]!;
    const { dims, affine } = background.hdr!;
    const grid = gridOf([dims[1]!, dims[2]!, dims[3]!], affine);
    const viewer = new Viewer(nv, addColours(nv, background), grid, canvas.parentElement!);
    nv.onLocationChange = (location) => {
      const { mm } = location as { mm: ArrayLike<number> };
      onMove([mm[0]!, mm[1]!, mm[2]!]);
    };
    new ResizeObserver(() => viewer.arrange()).observe(viewer.stage);
    // Before NiiVue's own keys, some of which open dialogues.
    viewer.stage.addEventListener("keydown", (event) => viewer.onKey(event), { capture: true });
    viewer.arrange();
    return viewer;
  }

  show({ map, palette, limits, opacity }: Shown): void {
    this.overlay.img = colour(resample(map, this.template), palette, limits, opacity);
    this.nv.refreshLayers(this.overlay, 1);
    this.nv.drawScene();
  }

  /** The template itself, in its own grey. */
  background(): Volume {
    return { ...this.template, values: Float32Array.from(this.nv.volumes[0]!.img as ArrayLike<number>) };
  }

  /** Move the crosshair here without telling anybody. */
  goTo(mm: Vec3): void {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.drawScene();
  }

  setMoving(moving: boolean): void {
    if (moving === this.moving) return;
    this.moving = moving;
    if (this.slow) this.arrange();
    if (!moving && this.solid && !this.measured) this.measure();
  }

  setSolid(solid: boolean): void {
    if (solid === this.solid) return;
    this.solid = solid;
    this.arrange();
  }

  /** Draw now, so that the canvas can be read in the same task. */
  draw(): HTMLCanvasElement {
    this.nv.drawScene();
    return this.nv.canvas!;
  }

  /** Tiles to one scale of millimetres: the row, square or column that shows them largest. */
  private arrange(): void {
    const { width: W, height: H } = this.nv.canvas!.getBoundingClientRect();
    if (W < 1 || H < 1) return;
    const [x, y, z] = [0, 1, 2].map((a) => Math.abs(this.template.shape[a]! * this.template.step[a]!)) as Vec3;
    const coronal: Tile = { sliceType: SLICE_TYPE.CORONAL, width: x, height: z };
    const sagittal: Tile = { sliceType: SLICE_TYPE.SAGITTAL, width: y, height: z };
    const axial: Tile = { sliceType: SLICE_TYPE.AXIAL, width: x, height: y };
    const solid: Tile[] = this.solid ? [{ sliceType: SLICE_TYPE.RENDER, width: y, height: y }] : [];
    const ways: Tile[][][] = [
      [[coronal, sagittal, axial, ...solid]],
      [[coronal, sagittal], [axial, ...solid]],
      [[coronal], [sagittal], [axial], ...solid.map((tile) => [tile])],
    ];
    const scaled = ways.map((rows) => ({ rows, scale: scaleOf(rows, W, H) }));
    const { rows, scale } = scaled.reduce((best, way) => (way.scale > best.scale ? way : best));
    const tiles = place(rows, scale, W, H);
    this.nv.opts.crosshairWidth = 2 / scale; // mm, two pixels: thinner than one it would go missing
    this.nv.setCustomLayout(
      this.moving && this.slow ? tiles.filter((tile) => tile.sliceType !== SLICE_TYPE.RENDER) : tiles,
    );
  }

  /** Time one frame, read back so that it is really drawn. The first compiles shaders. */
  private measure(): void {
    const { gl } = this.nv;
    const pixel = new Uint8Array(4);
    let start = 0;
    for (let i = 0; i < 2; i++) {
      start = performance.now();
      this.nv.drawScene();
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    }
    this.slow = performance.now() - start > SLOW_FRAME;
    this.measured = true;
  }

  private onKey(event: KeyboardEvent): void {
    event.stopPropagation();
    const step = (
      {
        ArrowLeft: [-1, 0, 0],
        ArrowRight: [1, 0, 0],
        ArrowUp: [0, 1, 0],
        ArrowDown: [0, -1, 0],
        PageUp: [0, 0, 1],
        PageDown: [0, 0, -1],
      } as Record<string, Vec3>
    )[event.key];
    if (!step) return;
    event.preventDefault();
    this.nv.moveCrosshairInVox(...step);
  }
}

/** A layer of colours on the grid of another volume. */
function addColours(nv: Niivue, like: NVImage): NVImage {
  const overlay = NVImage.zerosLike(like, "uint8");
  overlay.hdr!.datatypeCode = RGBA;
  overlay.hdr!.numBitsPerVoxel = 32;
  overlay.img = new Uint8Array(4 * like.img!.length);
  Object.assign(overlay, { global_min: 0, global_max: 255, cal_min: 0, cal_max: 255 });
  nv.addVolume(overlay);
  return overlay;
}

const sum = (values: number[]): number => values.reduce((a, b) => a + b, 0);
const widthOf = (row: Tile[]): number => sum(row.map((tile) => tile.width));
const heightOf = (row: Tile[]): number => Math.max(...row.map((tile) => tile.height));

/** Pixels a millimetre at which rows of tiles fill W x H. */
function scaleOf(rows: Tile[][], W: number, H: number): number {
  const across = rows.map((row) => (W - (row.length - 1) * GAP) / widthOf(row));
  return Math.min(...across, (H - (rows.length - 1) * GAP) / sum(rows.map(heightOf)));
}

/** Rows of tiles in the middle of W x H. */
function place(rows: Tile[][], scale: number, W: number, H: number): Layout {
  const total = sum(rows.map(heightOf)) * scale + (rows.length - 1) * GAP;
  const widest = Math.max(...rows.map((row) => widthOf(row) * scale + (row.length - 1) * GAP));
  let top = (H - total) / 2;
  const tiles: Layout = [];
  for (const row of rows) {
    let left = (W - widest) / 2;
    for (const { sliceType, width, height } of row) {
      const [w, h] = [width * scale, height * scale];
      tiles.push({ sliceType, position: [left / W, top / H, w / W, h / H] });
      left += w + GAP;
    }
    top += heightOf(row) * scale + GAP;
  }
  return tiles;
}
