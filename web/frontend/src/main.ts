// The page: controls on the left ask for maps, the viewer on the right shows the newest.
// Tests read the data attributes of <body>: ready, settled, decodes, quantity, imageSum, mm, value.

import "./style.css";
import { decode, fetchModel, type Decoded, type DecodeRequest, type Model, type Quantity } from "./api";
import { paintBar } from "./colours";
import { byId, format } from "./dom";
import { LatentControls } from "./latent";
import { Latest } from "./latest";
import { MetadataControls } from "./metadata";
import { Viewer, hasWebGL2 } from "./viewer";
import { peakOf, roundMaximum, valueAt, type Vec3 } from "./volume";

const REST = 250; // ms without a move after which a slider counts as released

const page = document.body.dataset;

function report(text: string, failed = false): void {
  const status = byId("status");
  status.textContent = text;
  status.classList.toggle("failed", failed);
}

function stop(text: string): void {
  const notice = byId("notice");
  notice.textContent = text;
  notice.hidden = false;
  report("");
}

function chosenQuantity(): Quantity {
  return document.querySelector<HTMLInputElement>("input[name=quantity]:checked")?.value === "sd"
    ? "sd"
    : "mean";
}

/** Colour limits stay fixed, so that a colour means the same wherever the sliders are. */
async function colourLimits(model: Model): Promise<Record<Quantity, [number, number]>> {
  const centre = await decode({ z: null, metadata: {}, quantity: "sd" });
  return {
    mean: [model.display.low, model.display.high],
    sd: [0, roundMaximum(centre.volume.values)],
  };
}

function showColourBar(quantity: Quantity, [low, high]: [number, number], unit: string): void {
  paintBar(byId<HTMLCanvasElement>("colours"), quantity);
  byId("colour-low").textContent = format(low);
  byId("colour-high").textContent = format(high);
  byId("colour-unit").textContent = quantity === "sd" ? `± ${unit}` : unit;
  byId("value-label").textContent = quantity === "sd" ? "Uncertainty" : "Value";
}

async function start(): Promise<void> {
  if (!hasWebGL2()) {
    stop("This browser has no WebGL2, which the viewer draws with. Try another browser, or switch hardware acceleration on.");
    return;
  }
  const model = await fetchModel();
  byId("model-name").textContent = `${model.name} · ${model.version}`;
  document.title = `atlas · ${model.name}`;

  let shown: Decoded | null = null;
  let crosshair: Vec3 = [0, 0, 0];
  let resting: number | undefined;

  const readValue = (): void => {
    const value = shown && valueAt(shown.volume, crosshair);
    byId("mm").textContent = `${crosshair.map((x) => x.toFixed(0)).join(", ")} mm`;
    byId("value").textContent = value === null ? "–" : value.toFixed(2);
    page["mm"] = JSON.stringify(crosshair);
    page["value"] = String(value);
  };
  const canvas = byId<HTMLCanvasElement>("canvas");
  canvas.addEventListener("webglcontextlost", () => stop("The browser dropped the graphics. Reload the page."));
  const viewer = await Viewer.create(canvas, (mm) => {
    crosshair = mm;
    readValue();
  });
  const limits = await colourLimits(model);

  const show = (answer: Decoded): void => {
    if (answer.quantity !== chosenQuantity()) return; // switched meanwhile; the other is on its way
    viewer.show(answer.volume, answer.quantity, limits[answer.quantity]);
    showColourBar(answer.quantity, limits[answer.quantity], model.unit);
    metadata.showImputed(answer.imputed);
    if (!shown) viewer.goTo(peakOf(answer.volume));
    shown = answer;
    readValue();
    report(`decoded in ${answer.milliseconds.toFixed(0)} ms`);
    page["decodes"] = String(Number(page["decodes"] ?? 0) + 1);
    page["quantity"] = answer.quantity;
    page["imageSum"] = String(answer.volume.values.reduce((sum, x) => sum + x, 0));
    page["ready"] = "true";
  };

  const latest = new Latest<DecodeRequest, Decoded>(
    decode,
    show,
    (error) => report(error.message, true),
    () => {
      resting = window.setTimeout(() => {
        viewer.setMoving(false);
        page["settled"] = "true";
      }, REST);
    },
  );
  const ask = (): void => {
    window.clearTimeout(resting);
    page["settled"] = "false";
    latest.ask({ z: latent.code(), metadata: metadata.known(), quantity: chosenQuantity() });
  };
  const moved = (): void => {
    viewer.setMoving(true);
    ask();
  };
  const latent = new LatentControls(byId("latent"), model.latent, moved);
  const metadata = new MetadataControls(byId("metadata"), model, moved);

  byId("reset").addEventListener("click", () => {
    latent.reset();
    metadata.reset();
    ask();
  });
  byId("sample").addEventListener("click", () => {
    latent.sample();
    ask();
  });
  for (const radio of document.querySelectorAll("input[name=quantity]")) {
    radio.addEventListener("change", ask);
  }
  ask();
}

start().catch((error: unknown) => stop(error instanceof Error ? error.message : String(error)));
