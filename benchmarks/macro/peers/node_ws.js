// Peer: `ws` on Node as its README has it: compression off (its default), and for a broadcast a loop
// over the clients that are open. A text from a client at /room/N goes to all members of that room;
// elsewhere it comes back.
"use strict";
const { createServer } = require("node:http");
const { say, need, obey } = require("./node_common.js");
const [WebSocket, version] = need("ws");

const rooms = new Map();
const http = createServer();
const server = new WebSocket.WebSocketServer({ server: http, perMessageDeflate: false });
server.on("connection", (socket, request) => {
  socket.on("error", () => {});
  if (!request.url.startsWith("/room/")) {
    socket.on("message", (data, binary) => socket.send(data, { binary }));
    return;
  }
  let room = rooms.get(request.url);
  if (room === undefined) rooms.set(request.url, (room = new Set()));
  room.add(socket);
  socket.on("close", () => room.delete(socket));
  socket.on("message", (data, binary) => {
    for (const member of room) {
      if (member.readyState === WebSocket.OPEN) member.send(data, { binary });
    }
  });
});
http.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  say("ready", { port: http.address().port, versions: { ws: version, node: process.version } });
  obey(() => server.clients.size);
});
