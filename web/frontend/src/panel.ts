// One map on the stage: its title, slices, colours and the value under the crosshair.

import { paintBar, type Palette } from "./colours";
import { element, format } from "./dom";
import { Viewer, type Shown } from "./viewer";
import { valueAt, type Vec3, type Volume } from "./volume";

const KEYS = "Arrow keys move the crosshair in the axial plane, page up and page down move it vertically.";

export interface Picture extends Shown {
  title: string;
  unit: string;
}

export class Panel {
  readonly node: HTMLElement;
  picture: Picture | null = null;
  private viewer: Viewer | null = null;
  private opening: Promise<void> | null = null;
  private readonly title = element("span", { className: "panel-title" });
  private readonly value = element("output", { className: "number" });
  private readonly low = element("span", {});
  private readonly high = element("span", {});
  private readonly unit = element("span", { className: "unit" });
  private readonly bar = element("canvas", { width: 256, height: 1 });
  private readonly canvas = element("canvas", { tabIndex: 0 });
  private painted: Palette | null = null;

  constructor(stage: HTMLElement, index: number) {
    this.canvas.id = index === 0 ? "canvas" : `canvas-${index}`;
    this.bar.setAttribute("aria-hidden", "true");
    this.node = element("figure", { className: "panel" },
      element("figcaption", {}, this.title, this.value),
      element("div", { className: "slices" }, this.canvas),
      element("div", { className: "colorbar" }, this.low, this.bar, this.high, this.unit));
    stage.append(this.node);
  }

  /** Start the graphics, once. */
  open(template: string, onMove: (mm: Vec3) => void, onLost: () => void): Promise<void> {
    this.opening ??= Viewer.create(this.canvas, template, onMove).then((viewer) => {
      this.canvas.addEventListener("webglcontextlost", onLost);
      this.viewer = viewer;
    });
    return this.opening;
  }

  /** The template under the maps. */
  background(): Volume {
    return this.viewer!.background();
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
    this.viewer?.show(picture);
  }

  /** Move the crosshair and read the value there; null outside the map. */
  goTo(mm: Vec3, move: boolean): number | null {
    if (move) this.viewer?.goTo(mm);
    const value = this.picture && valueAt(this.picture.map, mm);
    this.value.value = value === null ? "–" : value.toFixed(Math.abs(value) < 0.095 ? 3 : 2);
    return value;
  }

  setMoving(moving: boolean): void {
    this.viewer?.setMoving(moving);
  }

  setSolid(solid: boolean): void {
    this.viewer?.setSolid(solid);
  }

  /** The slices and the bar, to be copied in the same task. */
  drawn(): { slices: HTMLCanvasElement; bar: HTMLCanvasElement } | null {
    return this.viewer && { slices: this.viewer.draw(), bar: this.bar };
  }
}
