// Clients on Node: asks.js http|fetch ADDRESS REQUESTS [SECONDS], as asks.py.
const http = require("http");
const [client, address, requests, seconds] = process.argv.slice(2);
const limit = seconds ? 1000 * seconds : 0;
const agent = new http.Agent({ keepAlive: true });

const clients = {
  http: () => new Promise((resolve, reject) => {
    const request = http.get(address, { agent }, (response) => {
      response.on("error", reject).on("end", resolve).resume();
    });
    request.on("error", reject);
    if (limit) request.setTimeout(limit, () => request.destroy(new Error("timeout")));
  }),
  fetch: async () => {
    const options = limit ? { signal: AbortSignal.timeout(limit) } : {};
    await (await fetch(address, options)).text();
  },
};

(async () => {
  for (let n = 0; n < requests; n++) {
    try {
      await clients[client]();
      console.log("ok");
    } catch (error) {
      console.log(`${error.name}: ${error.message}`, error.cause ? error.cause.message : "");
    }
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  setTimeout(() => {}, 600000);
})();
