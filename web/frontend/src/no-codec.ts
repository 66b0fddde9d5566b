// Stands in for zarr's decompressors, see vite.config.ts.
export default {
  fromConfig(): never {
    throw new Error("this page reads no compressed zarr");
  },
};
