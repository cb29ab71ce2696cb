// A Node app with a dependency from the registry.
const http = require("http");
const isNumber = require("is-number");

http
  .createServer((request, response) => {
    response.setHeader("Content-Type", "text/plain");
    response.end(`hello from node, where 42 ${isNumber(42) ? "is" : "isn't"} a number\n`);
  })
  .listen(process.env.PORT);
