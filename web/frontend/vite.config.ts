import { cpSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

// Swagger UI is a page of its own (public/swagger, at /docs): copied, not bundled.
const swagger: Plugin = {
  name: "swagger",
  apply: "build",
  closeBundle() {
    const script = "swagger-ui-bundle.js";
    for (const file of [script, `${script}.LICENSE.txt`, "swagger-ui.css", "LICENSE", "NOTICE"])
      cpSync(`node_modules/swagger-ui-dist/${file}`, `../static/swagger/${file}`);
  },
};

export default defineConfig({
  base: "./",
  plugins: [swagger],
  // NiiVue reads zarr too; its WebAssembly decompressors (1.4 MB) have no use here.
  resolve: { alias: [{ find: /^numcodecs\/.*/, replacement: "/src/no-codec.ts" }] },
  worker: { format: "es" },
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // every asset its own file: the page allows no inline source
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 3000, // NiiVue
    // NiiVue apart: a new version of the page leaves the browser's copy of it alone. What fetches it
    // must not lie in it, or the page would wait for NiiVue before its first line.
    rolldownOptions: {
      output: {
        codeSplitting: {
          groups: [
            { name: "load", test: /preload-helper|rolldown[:/]runtime/, priority: 1 },
            { name: "niivue", test: /node_modules\/(?!onnxruntime)/ },
          ],
        },
      },
    },
    license: { fileName: "third-party-licenses.md" },
  },
  // `npm run dev` beside `atlas serve RUN`
  server: { proxy: { "/api": { target: "http://127.0.0.1:8000", changeOrigin: true } } },
});
