// The server's end of the protocol in child.py, for servers on Node and Bun.
"use strict";

/** Print one answer. */
function say(event, fields) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");
}

/** Load a package that was fetched for the peers, or say that it is missing and end. */
function need(name) {
  const path = require("node:path");
  const modules = path.join(__dirname, "../../../.cache/peers/node/node_modules");
  try {
    const loaded = require(path.join(modules, name));
    let version = "";
    try {
      version = require(path.join(modules, name, "package.json")).version;
    } catch {
      // some packages do not let their package.json be read
    }
    return [loaded, version];
  } catch {
    say("missing", { reason: `npm package '${name}'` });
    process.exit(0);
  }
}

/** Obey the harness until its end of the pipe closes. */
function obey(count) {
  let held = "";
  process.stdin.on("data", (chunk) => {
    held += chunk;
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line === "settle") {
        if (global.gc) global.gc();
        else if (typeof Bun !== "undefined") Bun.gc(true);
        say("done", {});
      } else if (line === "count") {
        say("done", { open: count() });
      } else {
        say("error", { reason: "unknown command" });
      }
    }
  });
  process.stdin.on("end", () => process.exit(0));
}

module.exports = { say, need, obey };
