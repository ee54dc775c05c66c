const fs = require("fs");
const http = require("http");
const big = fs.readFileSync("big");

http.createServer((request, response) => {
  response.end(request.url === "/big" ? big : "hello\n");
}).listen(8000);
