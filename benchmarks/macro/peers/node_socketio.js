// Peer: Socket.IO on Node. Clients use the WebSocket transport only, as its page on performance says,
// and each is in the room that its URL names; its request is let go then, as its page on memory says.
// What one says with the event "say" goes to the room.
"use strict";
const { createServer } = require("node:http");
const { say, need, obey } = require("./node_common.js");
const [{ Server }, version] = need("socket.io");

const http = createServer();
const io = new Server(http, { transports: ["websocket"], perMessageDeflate: false });
io.on("connection", (socket) => {
  const room = String(socket.handshake.query.room);
  socket.join(room);
  socket.conn.request = null;
  socket.on("say", (text) => io.to(room).emit("say", text));
});
http.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  const versions = { "socket.io": version, node: process.version };
  say("ready", { port: http.address().port, versions });
  obey(() => io.engine.clientsCount);
});
