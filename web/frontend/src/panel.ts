// One map on the stage: its title, slices, colours and the value under the crosshair.

import { paintBar, type Palette } from "./colours";
import { element, format } from "./dom";
import type { Template } from "./nifti";
import { Preview } from "./slices";
import type { Shown, Viewer } from "./viewer";
import { valueAt, type Vec3 } from "./volume";

const KEYS = "Arrow keys move the crosshair in the axial plane, page up and page down move it vertically.";

export interface Picture extends Shown {
  title: string;
  unit: string;
}

export class Panel {
  readonly node: HTMLElement;
  picture: Picture | null = null;
  private mm: Vec3 = [0, 0, 0];
  private solid = true;
  private viewer: Viewer | null = null;
  private preview: Preview; // until there is a viewer
  private opening: Promise<void> | null = null;
  private readonly title = element("span", { className: "panel-title" });
  private readonly value = element("output", { className: "number" });
  private readonly low = element("span", {});
  private readonly high = element("span", {});
  private readonly unit = element("span", { className: "unit" });
  private readonly bar = element("canvas", { width: 256, height: 1 });
  private readonly canvas = element("canvas", { tabIndex: 0 });
  private painted: Palette | null = null;

  constructor(stage: HTMLElement, index: number, private readonly template: Template) {
    this.preview = new Preview(template, () => this.solid);
    this.canvas.id = index === 0 ? "canvas" : `canvas-${index}`;
    this.bar.setAttribute("aria-hidden", "true");
    this.node = element("figure", { className: "panel" },
      element("figcaption", {}, this.title, this.value),
      element("div", { className: "slices" }, this.canvas, this.preview.canvas),
      element("div", { className: "colorbar" }, this.low, this.bar, this.high, this.unit));
    stage.append(this.node);
  }

  /** Start the graphics, once; then they show what the preview does. */
  open(onMove: (mm: Vec3) => void, onLost: () => void): Promise<void> {
    this.opening ??= this.start((mm) => this.viewer && onMove(mm), onLost);
    return this.opening;
  }

  private async start(onMove: (mm: Vec3) => void, onLost: () => void): Promise<void> {
    const { Viewer } = await import("./viewer"); // NiiVue is most of the page: nothing waits for it
    const viewer = await Viewer.create(this.canvas, this.template, this.solid, onMove);
    this.canvas.addEventListener("webglcontextlost", onLost);
    viewer.setSolid(this.solid); // the view may have changed meanwhile
    if (this.picture) viewer.show(this.picture);
    viewer.goTo(this.mm);
    this.preview.canvas.remove();
    this.viewer = viewer;
  }

  show(picture: Picture): void {
    this.picture = picture;
    this.title.textContent = picture.title;
    this.canvas.setAttribute("aria-label", `${picture.title}: coronal, sagittal and axial slices. ${KEYS}`);
    const { palette, limits: [low, high] } = picture;
    this.low.textContent = palette === "difference" ? `−${format(high)}` : format(low);
    this.high.textContent = format(high);
    this.unit.textContent = picture.unit;
    if (this.painted !== palette) paintBar(this.bar, palette);
    this.painted = palette;
    (this.viewer ?? this.preview).show(picture);
  }

  /** Move the crosshair and read the value there; null outside the map. */
  goTo(mm: Vec3, move: boolean): number | null {
    this.mm = mm;
    if (move) (this.viewer ?? this.preview).goTo(mm);
    const value = this.picture && valueAt(this.picture.map, mm);
    this.value.value = value === null ? "–" : value.toFixed(Math.abs(value) < 0.095 ? 3 : 2);
    return value;
  }

  setMoving(moving: boolean): void {
    this.viewer?.setMoving(moving);
  }

  /** Whether there is room for the 3-D view. */
  setSolid(solid: boolean): void {
    this.solid = solid;
    this.viewer?.setSolid(solid);
  }

  /** The slices and the bar, to be copied in the same task. */
  drawn(): { slices: HTMLCanvasElement; bar: HTMLCanvasElement } {
    return { slices: this.viewer?.draw() ?? this.preview.canvas, bar: this.bar };
  }
}
