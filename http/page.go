package http

import (
	"embed"
	"fmt"
	"net/http"
)

// pageFiles are the page that shows a node to people. It holds no data: it asks GET /info and GET /events,
// with the credential that is typed into it.
//
//go:embed page/index.html page/page.css page/page.js
var pageFiles embed.FS

// pagePolicy lets the page load its own two files, talk to its own node, and be framed by nobody.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *Server) pageRoutes() []route {
	file := func(path, name, contentType, summary string) route {
		return route{method: "GET", path: path, access: accessOpen, handler: s.pageFile(name, contentType), answer: contentType, summary: summary}
	}
	return []route{
		file("/{$}", "index.html", "text/html", "The page that shows this node to people."),
		file("/page.css", "page.css", "text/css", "Of the page: its style."),
		file("/page.js", "page.js", "text/javascript", "Of the page: its script."),
	}
}

func (s *Server) pageFile(name, contentType string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			s.fault(w, fmt.Errorf("the page: %w", err))
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		s.answer(w, r, contentType+"; charset=utf-8", b)
	}
}
