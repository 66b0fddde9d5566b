// What is shown as one HTML file that opens without a server: the viewer as a classic script, the
// template and the maps inlined.

import { toFloat16 } from "./float16";
import type { Palette } from "./colours";
import type { Picture } from "./panel";
import type { Volume } from "./volume";

export interface Parts {
  title: string;
  maps: Picture[];
  facts: [string, string][]; // where the maps come from, line by line
  mm: [number, number, number]; // the crosshair
  template: string; // address of the NIfTI file
}

/** What the file holds as JSON; standalone.ts reads it. */
export interface Inlined {
  title: string;
  facts: [string, string][];
  mm: [number, number, number];
  template: string; // base64
  maps: {
    title: string;
    palette: Palette;
    limits: readonly [number, number];
    unit: string;
    shape: Volume["shape"];
    origin: Volume["origin"];
    step: Volume["step"];
    values: string; // float16 in base64, value = raw * scale
    scale: number;
    opacity: string | null; // uint8 in base64, on the template's grid
  }[];
}

/** Assemble the file. */
export async function standalone(parts: Parts): Promise<Blob> {
  const [script, template] = await Promise.all([
    ask(new URL("standalone.js", document.baseURI).href).then((answer) => answer.text()),
    ask(parts.template).then((answer) => answer.arrayBuffer()),
  ]);
  const inlined: Inlined = {
    title: parts.title,
    facts: parts.facts,
    mm: parts.mm,
    template: toBase64(new Uint8Array(template)),
    maps: parts.maps.map(({ map: { values, ...grid }, opacity, ...about }) => {
      const scale = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
      return {
        ...about, ...grid, scale,
        values: toBase64(toFloat16(values.map((value) => value / scale))),
        opacity: opacity ? toBase64(Uint8Array.from(opacity, (share) => Math.round(255 * share))) : null,
      };
    }),
  };
  const data = JSON.stringify(inlined).replaceAll("<", "\\u003c"); // nothing in it ends the element
  const page = [
    "<!doctype html>",
    '<html lang="en"><head><meta charset="utf-8" />',
    '<meta name="viewport" content="width=device-width, initial-scale=1" />',
    '<meta name="color-scheme" content="light dark" />',
    // It asks nobody: what NiiVue fetches is inlined as well.
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src data: blob:" />`,
    `<title>${escape(parts.title)}</title></head><body>`,
    `<script type="application/json" id="inlined">${data}</script>`,
    `<script>${script.replaceAll("</script", "<\\/script")}</script>`,
    "</body></html>",
  ];
  return new Blob([page.join("\n")], { type: "text/html" });
}

async function ask(address: string): Promise<Response> {
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) throw new Error(`The page could not fetch ${address.split("/").at(-1)!}, which the file needs.`);
  return answer;
}

function toBase64(bytes: Uint8Array): string {
  let letters = "";
  for (let i = 0; i < bytes.length; i += 0x8000) letters += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(letters);
}

const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escape = (text: string): string => text.replace(/[&<>"]/g, (letter) => ENTITIES[letter]!);
