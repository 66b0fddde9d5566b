// The one file that knows NiiVue (0.69.0, pinned): slices and a 3-D view of the template with the
// decoded map over it.
//
// A new map replaces the overlay's array and refreshes that layer alone (`refreshLayers` is
// internal to NiiVue, ten times quicker than removing and adding a volume, and holds for this
// version). NiiVue samples an overlay by nearest neighbour, so the map is first interpolated onto
// the template's grid: a 4 mm map then shows no blocks.

import { DRAG_MODE, NVImage, Niivue, SLICE_TYPE } from "@niivue/niivue";

import type { Quantity } from "./api";
import { COLOUR_MAPS, FADE } from "./colours";
import { gridOf, resample, type Grid, type Vec3, type Volume } from "./volume";

type Layout = Parameters<Niivue["setCustomLayout"]>[0];

const SLOW_FRAME = 60; // ms; where the 3-D view makes a frame slower, it rests while a slider moves
const GAP = 8; // CSS pixels between the tiles

export function hasWebGL2(): boolean {
  return document.createElement("canvas").getContext("webgl2") !== null;
}

export class Viewer {
  private moving = false;
  private slow = false;

  private constructor(
    private readonly nv: Niivue,
    private readonly overlay: NVImage,
    private readonly template: Grid,
    private readonly stage: HTMLElement,
  ) {}

  static async create(canvas: HTMLCanvasElement, onMove: (mm: Vec3) => void): Promise<Viewer> {
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
    for (const [name, map] of Object.entries(COLOUR_MAPS)) {
      nv.addColormap(name, { ...map, min: 0, max: 0 });
    }
    await nv.attachToCanvas(canvas);
    await nv.loadVolumes([{ url: "api/template.nii.gz", colormap: "gray", cal_min: 20, cal_max: 260 }]);
    const background = nv.volumes[0]!;
    const overlay = NVImage.zerosLike(background, "float32");
    overlay.colormapType = 1; // colours from 0 to cal_max, fading out below cal_min
    overlay.colormap = "mean";
    nv.addVolume(overlay);
    const { dims, affine } = background.hdr!;
    const grid = gridOf([dims[1]!, dims[2]!, dims[3]!], affine);
    const viewer = new Viewer(nv, overlay, grid, canvas.parentElement!);
    nv.onLocationChange = (location) => {
      const { mm } = location as { mm: ArrayLike<number> };
      onMove([mm[0]!, mm[1]!, mm[2]!]);
    };
    new ResizeObserver(() => viewer.arrange()).observe(viewer.stage);
    // Before NiiVue's own keys, some of which open dialogues.
    viewer.stage.addEventListener("keydown", (event) => viewer.onKey(event), { capture: true });
    viewer.arrange();
    viewer.measure();
    return viewer;
  }

  show(map: Volume, quantity: Quantity, [low, high]: [number, number]): void {
    // NiiVue knows only fully opaque voxels above a limit and a fade from that limit to 0: with
    // `low` taken off the values, the map fades out towards `low` and has no jagged edge.
    this.overlay.img = resample(map, this.template).map((value) => Math.max(value - low, 0));
    if (this.overlay.colormap !== quantity) this.overlay.colormap = quantity; // resets the limits
    this.overlay.cal_min = FADE[quantity] * (high - low);
    this.overlay.cal_max = high - low;
    this.nv.refreshLayers(this.overlay, 1);
    this.nv.drawScene();
  }

  goTo(mm: Vec3): void {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  setMoving(moving: boolean): void {
    if (moving === this.moving) return;
    this.moving = moving;
    if (this.slow) this.arrange();
  }

  /** Tiles to one scale of millimetres: as a square, or in a row where that shows them larger. */
  private arrange(): void {
    const { width: W, height: H } = this.nv.canvas!.getBoundingClientRect();
    if (W < 1 || H < 1) return;
    const [x, y, z] = [0, 1, 2].map((a) =>
      Math.abs(this.template.shape[a]! * this.template.step[a]!),
    ) as Vec3;
    const square = Math.min((W - GAP) / (x + y), (H - GAP) / (y + z));
    const row = Math.min((W - 3 * GAP) / (2 * x + 2 * y), H / Math.max(y, z));
    const scale = Math.max(square, row);
    const at = (left: number, top: number, w: number, h: number): [number, number, number, number] => [
      left / W, top / H, (w * scale) / W, (h * scale) / H,
    ];
    let tiles: Layout;
    if (square >= row) {
      const left = (W - (x + y) * scale - GAP) / 2;
      const top = (H - (y + z) * scale - GAP) / 2;
      const right = left + x * scale + GAP;
      const bottom = top + z * scale + GAP;
      tiles = [
        { sliceType: SLICE_TYPE.CORONAL, position: at(left, top, x, z) },
        { sliceType: SLICE_TYPE.SAGITTAL, position: at(right, top, y, z) },
        { sliceType: SLICE_TYPE.AXIAL, position: at(left, bottom, x, y) },
        { sliceType: SLICE_TYPE.RENDER, position: at(right, bottom, y, y) },
      ];
    } else {
      const left = (W - (2 * x + 2 * y) * scale - 3 * GAP) / 2;
      const top = (H - y * scale) / 2;
      const second = left + x * scale + GAP;
      const third = second + y * scale + GAP;
      tiles = [
        { sliceType: SLICE_TYPE.CORONAL, position: at(left, top, x, z) },
        { sliceType: SLICE_TYPE.SAGITTAL, position: at(second, top, y, z) },
        { sliceType: SLICE_TYPE.AXIAL, position: at(third, top, x, y) },
        { sliceType: SLICE_TYPE.RENDER, position: at(third + x * scale + GAP, top, y, y) },
      ];
    }
    if (this.moving && this.slow) tiles.pop();
    this.nv.setCustomLayout(tiles);
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
