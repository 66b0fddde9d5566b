// Who answers this page: the server it came from, or, in a folder that `atlas export --html` wrote,
// this very tab.

import type { Backend } from "./backend";
import { Server } from "./server";

/** `onProgress` hears, in words, how far the model has been loaded; null once it is here. */
export async function connect(onProgress: (text: string | null) => void = () => undefined): Promise<Backend> {
  if (!document.querySelector('meta[name="atlas-backend"][content="tab"]')) return new Server();
  const { Tab } = await import("./tab");
  return Tab.open(onProgress);
}
