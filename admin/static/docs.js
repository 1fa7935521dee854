// Shows the OpenAPI document of this listener. The token that is typed in is not kept anywhere.
"use strict";

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  docExpansion: "list",
  deepLinking: true,
  validatorUrl: null,
  persistAuthorization: false,
});
