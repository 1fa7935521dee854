// Peer: Bun's own server with its topics: a client subscribes when it opens, and its text is published
// to all subscribers. Elsewhere than at /room/N it comes back.
"use strict";
const { say, obey } = require("./node_common.js");

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    const path = new URL(request.url).pathname;
    const room = path.startsWith("/room/") ? path : "";
    return server.upgrade(request, { data: { room } }) ? undefined : new Response("no", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 120,
    open(ws) {
      if (ws.data.room) ws.subscribe(ws.data.room);
    },
    message(ws, message) {
      if (ws.data.room) server.publish(ws.data.room, message);
      else ws.send(message);
    },
  },
});
say("ready", { port: server.port, versions: { bun: Bun.version } });
obey(() => server.pendingWebSockets);
