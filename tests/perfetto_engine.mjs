// Perfetto's trace processor, as its viewer runs it (WebAssembly in a worker), over standard streams:
//     node perfetto_engine.mjs FOLDER < requests > replies
// FOLDER has the viewer's engine_bundle.js and trace_processor*.wasm.
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import vm from "node:vm";

const { argv, stdin, stdout } = process;
const fileOf = (url) => readFileSync(join(argv[2], basename(String(url))));

// What a worker of a browser has and Node has not.
globalThis.XMLHttpRequest = class {
  open(method, url) {
    this.url = url;
  }
  send() {
    this.response = new Uint8Array(fileOf(this.url)).buffer;
  }
};
globalThis.fetch = async (url) =>
  new Response(fileOf(url), { headers: { "content-type": "application/wasm" } });
globalThis.self = globalThis;
globalThis.location = { href: "file:///engine_bundle.js" };
globalThis.WorkerGlobalScope = class {};
globalThis.importScripts = () => {};
console.log = console.error; // replies alone go to standard output
delete globalThis.process; // else the engine takes itself to run in Node, for which it is not made

vm.runInThisContext(fileOf("engine_bundle.js").toString());
const port = { postMessage: (reply) => stdout.write(Buffer.from(reply)) };
globalThis.onmessage({ data: port });
for await (const request of stdin) {
  port.onmessage({ data: new Uint8Array(request) });
}
