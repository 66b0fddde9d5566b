// Swagger UI over this server's own description; no validator elsewhere is asked.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger", validatorUrl: null, deepLinking: true });
