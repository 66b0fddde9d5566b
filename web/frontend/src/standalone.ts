// The one script of a downloaded file: the maps that it holds, over the template, with linked
// crosshairs. Built as a classic script, because a page opened as a file may load no module.
// Tests read the data attributes of <body>: ready, mm, values.

import { byId, element, hasWebGL2 } from "./dom";
import type { Inlined } from "./download";
import { fromFloat16 } from "./float16";
import { loadTemplate } from "./nifti";
import { Panel } from "./panel";
import style from "./style.css?inline";
import type { Vec3 } from "./volume";

const bytesOf = (base64: string): Uint8Array<ArrayBuffer> => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** The file has no column of controls: its one section is all there is. */
const ALONE = `
body { display: block; height: auto; }
main.alone { display: flex; flex-direction: column; gap: 12px; height: auto; min-height: 100vh; padding: 12px 18px; }
.alone #stage { flex: 1 0 24rem; height: 70vh; }
.alone dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 12px; }
.alone dl > * { overflow-wrap: anywhere; }
`;

async function open(): Promise<void> {
  const inlined = JSON.parse(byId("inlined").textContent ?? "") as Inlined;
  document.head.append(element("style", {}, style + ALONE));
  const stage = element("div", { id: "stage" });
  stage.dataset["panels"] = String(inlined.maps.length);
  const place = element("dd", {});
  const facts = element("dl", {}, element("dt", {}, "Crosshair"), place);
  for (const [name, value] of inlined.facts) facts.append(element("dt", {}, name), element("dd", {}, value));
  document.body.append(element("main", { className: "alone" }, element("h1", {}, inlined.title), stage, facts));
  if (!hasWebGL2()) {
    stage.textContent = "This browser has no WebGL2, which the viewer draws with. Try another browser, or switch hardware acceleration on.";
    return;
  }
  const address = URL.createObjectURL(new Blob([bytesOf(inlined.template)]));
  const template = await loadTemplate(address);
  URL.revokeObjectURL(address);
  const panels = inlined.maps.map((_, i) => new Panel(stage, i, template));
  const goTo = (mm: Vec3, from: Panel | null = null): void => {
    const values = panels.map((panel) => panel.goTo(mm, panel !== from));
    place.textContent = `${mm.map((x) => x.toFixed(0)).join(", ")} mm`;
    document.body.dataset["mm"] = JSON.stringify(mm);
    document.body.dataset["values"] = JSON.stringify(values);
  };
  for (const [i, { values, scale, opacity, shape, origin, step, ...about }] of inlined.maps.entries()) {
    const panel = panels[i]!;
    panel.setSolid(panels.length === 1);
    panel.show({
      ...about,
      map: { shape, origin, step, values: fromFloat16(bytesOf(values).buffer, scale) },
      opacity: opacity ? Float32Array.from(bytesOf(opacity), (share) => share / 255) : null,
    });
  }
  goTo(inlined.mm);
  for (const panel of panels) {
    await panel.open((mm) => goTo(mm, panel), () => {
      stage.textContent = "The browser dropped the graphics. Reload the page.";
    });
  }
  document.body.dataset["ready"] = "true";
}

open().catch((error: unknown) => {
  document.body.append(element("p", { role: "alert" }, error instanceof Error ? error.message : String(error)));
});
