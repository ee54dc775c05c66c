// A proxy on Node, as short as it can be: proxy.js [HALF-OPEN].
const net = require("net");
const options = { allowHalfOpen: process.argv[2] === "HALF-OPEN" };
net.createServer(options, (client) => {
  const server = net.connect({ host: "server", port: 9000, ...options });
  client.pipe(server).pipe(client);
  for (const each of [client, server]) each.on("error", () => {}); // or the process ends
}).listen(8000);
