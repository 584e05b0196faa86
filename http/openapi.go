package http

import (
	"net/http"
	"strings"
)

// handleOpenAPI answers with the table of routes as an OpenAPI 3.1 document.
func (s *Server) handleOpenAPI(w http.ResponseWriter, r *http.Request) {
	s.answerJSON(w, r, openAPI(s.routes()))
}

type object = map[string]any

func openAPI(routes []route) object {
	paths := make(object)
	for _, r := range routes {
		path := openAPIPath(r.path)
		item, ok := paths[path].(object)
		if !ok {
			item = make(object)
			paths[path] = item
		}
		item[strings.ToLower(r.method)] = operation(r)
	}
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title":       "litefs node",
			"version":     protocolVersion,
			"description": "The HTTP port of a node. Refusals are one line of text: what is wrong, and what to do.",
		},
		"paths": paths,
		"components": object{"securitySchemes": object{
			"cluster":  object{"type": "http", "scheme": "bearer", "description": "http.token, or the secret beside the lease"},
			"operator": object{"type": "http", "scheme": "bearer", "description": "http.admin-token; without one, the cluster's credential"},
		}},
	}
}

// openAPIPath names what a pattern of the mux leaves open.
func openAPIPath(path string) string {
	switch path {
	case "/db/":
		return "/db/{name}/wait"
	case "/{$}":
		return "/"
	}
	return path
}

func operation(r route) object {
	answers := object{"200": object{"description": "done", "content": object{r.answer: object{}}}}
	refusal := func(code, why string) {
		answers[code] = object{"description": why, "content": object{typeText: object{}}}
	}
	refusal("400", "the request is malformed")
	if r.access != accessOpen {
		refusal("401", "wrong or missing credential")
	}
	if r.access == accessOperate || r.access == accessHandOver {
		refusal("403", "not the operator's credential, or the page of another site")
	}
	refusal("404", "nothing has that name")
	refusal("409", "not in this state of the node")
	if strings.HasPrefix(r.path, "/halt/") {
		refusal("410", "the write lock is not held any more")
		refusal("422", "the write lock of this database cannot be borrowed: the line says why")
	}
	refusal("503", "not now: the line says why")

	op := object{"summary": r.summary, "responses": answers, "security": security(r.access)}
	var params []object
	if strings.HasPrefix(openAPIPath(r.path), "/db/{name}") {
		params = append(params, object{"name": "name", "in": "path", "required": true, "description": dbParam.text, "schema": object{"type": "string"}})
	}
	for _, p := range r.query {
		params = append(params, object{"name": p.name, "in": "query", "required": p.required, "description": p.text, "schema": object{"type": "string"}})
	}
	if params != nil {
		op["parameters"] = params
	}
	return op
}

func security(a access) []object {
	cluster, operator := object{"cluster": []string{}}, object{"operator": []string{}}
	switch a {
	case accessOpen:
		return []object{{}}
	case accessNode:
		return []object{cluster}
	case accessOperate:
		return []object{operator}
	}
	return []object{cluster, operator}
}
