// Shows the document that this server makes of itself; nothing is fetched from anywhere else.
SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#page",
  deepLinking: true,
  validatorUrl: null,  // the default sends the document's address to swagger.io
});
