// Peer: uWebSockets.js, topics for rooms as its examples have it: a client subscribes when it opens
// and its text is published to all subscribers by the app. Elsewhere than at /room/N it comes back.
"use strict";
const { say, need, obey } = require("./node_common.js");
const [uws, version] = need("@trufflesuite/uws-js-unofficial");

// A ping is sent when these seconds less sixteen, to the next four, have passed without a word.
const idleTimeout = process.env.BENCHMARK_PING ? Number(process.env.BENCHMARK_PING) + 16 : 120;
let open = 0;
const app = uws.App();
const common = { compression: uws.DISABLED, maxPayloadLength: 16 * 1024 * 1024 };
app.ws("/room/:room", {
  ...common,
  idleTimeout,
  maxBackpressure: 1024 * 1024,
  upgrade: (res, req, context) => {
    res.upgrade(
      { room: req.getParameter(0) },
      req.getHeader("sec-websocket-key"),
      req.getHeader("sec-websocket-protocol"),
      req.getHeader("sec-websocket-extensions"),
      context,
    );
  },
  open: (ws) => {
    open++;
    ws.subscribe(ws.room ?? ws.getUserData().room);
  },
  message: (ws, message, binary) => {
    app.publish(ws.room ?? ws.getUserData().room, message, binary);
  },
  close: () => open--,
});
app.ws("/*", {
  ...common,
  idleTimeout,
  open: () => open++,
  message: (ws, message, binary) => ws.send(message, binary),
  close: () => open--,
});
app.listen("127.0.0.1", 0, (listening) => {
  if (!listening) {
    say("missing", { reason: "a port to listen on" });
    process.exit(0);
  }
  const versions = { "uWebSockets.js": version, node: process.version };
  say("ready", { port: uws.us_socket_local_port(listening), versions });
  obey(() => open);
});
