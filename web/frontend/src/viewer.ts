// The one file that knows NiiVue (0.69.0, pinned): slices and a 3-D view of the template with one map
// over it.
//
// A new map replaces the overlay's array and refreshes that layer alone (`refreshLayers` is
// internal to NiiVue, ten times quicker than removing and adding a volume, and holds for this
// version). NiiVue samples an overlay by nearest neighbour and knows only its own ways to fade one
// out, so the map is interpolated onto the template's grid and coloured here, and NiiVue gets
// colours.

import { DRAG_MODE, NVImage, Niivue, SLICE_TYPE } from "@niivue/niivue";

import { colourOn, type Palette } from "./colours";
import type { Template } from "./nifti";
import { GREY } from "./slices";
import { arrange, type Side } from "./tiles";
import type { Grid, Vec3, Volume } from "./volume";

type Layout = Parameters<Niivue["setCustomLayout"]>[0];

const SLOW_FRAME = 60; // ms; where the 3-D view makes a frame slower, it rests while a slider moves
const RGBA = 2304; // NIfTI's code
const SLICES: Record<Side, SLICE_TYPE> = {
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  axial: SLICE_TYPE.AXIAL,
  solid: SLICE_TYPE.RENDER,
};

export interface Shown {
  map: Volume;
  palette: Palette;
  limits: readonly [number, number];
  opacity?: Float32Array | null; // on the template's grid, 0 to 1
}

export class Viewer {
  private moving = true; // the first map does not wait for the 3-D view
  private slow = true; // until it is measured
  private measured: boolean;

  private constructor(
    private readonly nv: Niivue,
    private readonly overlay: NVImage,
    private readonly template: Grid,
    private readonly stage: HTMLElement,
    private solid: boolean, // whether there is room for the 3-D view
  ) {
    this.measured = inSoftware(nv.gl); // slow for sure, and frames to measure it by are dear
  }

  static async create(
    canvas: HTMLCanvasElement, template: Template, solid: boolean, onMove: (mm: Vec3) => void,
  ): Promise<Viewer> {
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
    const background = await NVImage.loadFromUrl({
      url: "template.nii", buffer: template.nifti, colormap: "gray", cal_min: GREY[0], cal_max: GREY[1],
    });
    nv.addVolume(background);
    const viewer = new Viewer(nv, addColours(nv, background), template, canvas.parentElement!, solid);
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
    this.overlay.img = colourOn(this.template, map, palette, limits, opacity);
    this.nv.refreshLayers(this.overlay, 1);
    this.nv.drawScene();
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

  private arrange(): void {
    const { width: W, height: H } = this.nv.canvas!.getBoundingClientRect();
    if (W < 1 || H < 1) return;
    const { tiles, scale } = arrange(this.template, W, H, this.solid);
    this.nv.opts.crosshairWidth = 2 / scale; // mm, two pixels: thinner than one it would go missing
    const layout: Layout = tiles
      .filter(({ side }) => side !== "solid" || !(this.moving && this.slow))
      .map(({ side, left, top, width, height }) => ({
        sliceType: SLICES[side], position: [left / W, top / H, width / W, height / H],
      }));
    this.nv.setCustomLayout(layout);
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

/** Whether the processor draws, in Chromium, Firefox or Windows. */
function inSoftware(gl: WebGL2RenderingContext): boolean {
  const about = gl.getExtension("WEBGL_debug_renderer_info");
  const renderer = String(gl.getParameter(about ? about.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(renderer);
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
