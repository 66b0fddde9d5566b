// The script of a downloaded HTML file: one classic script with NiiVue inside.

import { defineConfig } from "vite";

import page from "./vite.config";

export default defineConfig({
  ...page,
  plugins: [],
  publicDir: false,
  build: {
    outDir: "../static",
    emptyOutDir: false,
    target: "es2022",
    assetsInlineLimit: 1e6, // everything inside
    modulePreload: false,
    chunkSizeWarningLimit: 3000,
    rolldownOptions: {
      input: "src/standalone.ts",
      transform: { define: { "import.meta": "({})" } }, // a classic script has none
      output: { format: "iife", entryFileNames: "standalone.js", codeSplitting: false },
    },
  },
});
