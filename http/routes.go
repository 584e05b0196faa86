package http

import (
	"net/http"
	"net/http/pprof"
)

// access says whose credential a call needs.
type access string

const (
	accessOpen     access = "open"
	accessRead     access = "read"      // the cluster's or the operator's: it tells and changes nothing
	accessNode     access = "node"      // the cluster's
	accessOperate  access = "operate"   // the operator's
	accessHandOver access = "hand over" // the operator's; or the cluster's, for the role to go to a node that is named
)

// route is one call. The table of them is the only place where handlers are registered, and what
// GET /openapi.json tells.
type route struct {
	method, path string
	access       access
	handler      http.HandlerFunc

	changes bool // leaves a line in the log; a POST
	ownBody bool // bounds the request's body itself
	duplex  bool // answers while the body of the request stays open

	summary string
	query   []param
	answer  string // content type of a 200
}

// param is a parameter of a call's query.
type param struct {
	name, text string
	required   bool
}

var (
	maxLagParam = param{name: "max-lag", text: "how old the copy of a replica may be, like 2s"}
	dbParam     = param{name: "db", text: "path of the database below the mount"}
)

const (
	typeText   = "text/plain"
	typeJSON   = "application/json"
	typeLines  = "application/x-ndjson"
	typeBinary = "application/octet-stream"
)

func (s *Server) routes() []route {
	routes := []route{
		{method: "GET", path: "/health", access: accessOpen, handler: s.health(healthAlive), answer: typeText,
			summary: "Does the process answer?", query: []param{maxLagParam}},
		{method: "GET", path: "/health/ready", access: accessOpen, handler: s.health(healthReady), answer: typeText,
			summary: "Is this node the primary, or has it caught up once?"},
		{method: "GET", path: "/health/primary", access: accessOpen, handler: s.health(healthPrimary), answer: typeText,
			summary: "May this node write?"},
		{method: "GET", path: "/health/replica", access: accessOpen, handler: s.health(healthReplica), answer: typeText,
			summary: "Is this node a replica whose copy is fresh enough?", query: []param{maxLagParam}},

		{method: "GET", path: "/info", access: accessRead, handler: s.handleInfo, answer: typeJSON,
			summary: "The node, its databases, and its replicas."},
		{method: "GET", path: "/position", access: accessRead, handler: s.handlePosition, answer: typeJSON,
			summary: "How full the node is, for one that may become the primary."},
		{method: "GET", path: "/metrics", access: accessRead, handler: s.handleMetrics, answer: typeText,
			summary: "Metrics in the text format of Prometheus."},
		{method: "GET", path: "/events", access: accessRead, handler: s.handleEvents, answer: typeLines,
			summary: "Transactions and changes of the role as they happen, one JSON object a line.",
			query:   []param{{name: "from", text: "DB@TXID or DB@TXID/CHECKSUM: go on after it; may be repeated"}}},
		{method: "GET", path: "/export", access: accessRead, handler: s.handleExport, answer: typeBinary,
			summary: "A database as a file.", query: []param{{name: "name", text: dbParam.text, required: true}}},
		{method: "GET", path: "/db/", access: accessRead, handler: s.handleDB, answer: typeJSON,
			summary: "/db/NAME/wait returns when the database has a position.", query: []param{
				{name: "pos", text: "TXID, or TXID/checksum, in hexadecimal", required: true},
				{name: "epoch", text: "epoch that the position is of"}, {name: "timeout", text: "how long to wait, like 5s"}}},

		{method: "POST", path: "/stream", access: accessNode, handler: s.handleStream, answer: typeBinary, ownBody: true, duplex: true,
			summary: "Transactions for a replica."},
		{method: "POST", path: "/pages", access: accessNode, handler: s.handlePages, answer: typeBinary, ownBody: true,
			summary: "The pages in which two copies of a database differ."},
		{method: "POST", path: "/tail", access: accessNode, handler: s.handleTail, answer: typeBinary, ownBody: true,
			summary: "Transactions that a primary lost with its power."},

		{method: "POST", path: "/promote", access: accessOperate, handler: s.handlePromote, answer: typeText, changes: true,
			summary: "Makes this node the primary.", query: []param{{name: "force", text: "id of this node: even if others have more transactions"}}},
		{method: "POST", path: "/demote", access: accessHandOver, handler: s.handleDemote, answer: typeText, changes: true,
			summary: "Makes this node, the primary, hand over.", query: []param{{name: "to", text: "id of the node that becomes the primary"}}},
		{method: "POST", path: "/durability", access: accessOperate, handler: s.handleDurability, answer: typeJSON, changes: true,
			summary: "Sets what is promised of the commits of a database, on this node.", query: []param{
				{name: "db", text: dbParam.text, required: true},
				{name: "level", text: "async, quorum:N[,durable|memory][,TIMEOUT], max-lag:LAG, archive[:TIMEOUT], or rule for what the configuration says", required: true}}},
		{method: "POST", path: "/import", access: accessOperate, handler: s.handleImport, answer: typeJSON, changes: true, ownBody: true,
			summary: "Makes the body, a database file, the content of a database, in one transaction.",
			query:   []param{{name: "name", text: dbParam.text, required: true}}},
		{method: "POST", path: "/repair", access: accessOperate, handler: s.handleRepair, answer: typeJSON, changes: true,
			summary: "Fetches the pages of a replica's database that differ from the primary's.", query: []param{
				{name: "db", text: dbParam.text, required: true}, {name: "dry", text: "1: compare only"}}},
		{method: "POST", path: "/scrub", access: accessOperate, handler: s.handleScrub, answer: typeLines, changes: true,
			summary: "Reads databases and logs and checks every checksum.", query: []param{dbParam,
				{name: "rate", text: "bytes a second"}}},
	}
	routes = append(routes, s.haltRoutes()...)
	routes = append(routes, s.pageRoutes()...)
	routes = append(routes, s.debugRoutes()...)
	return append(routes, route{method: "GET", path: "/openapi.json", access: accessOpen, answer: typeJSON,
		handler: s.handleOpenAPI, summary: "This description."})
}

// debugRoutes are there only where an operator has a credential of his own: a profile shows memory.
func (s *Server) debugRoutes() []route {
	if s.opt.AdminToken == "" {
		return nil
	}
	get := func(path, summary string, h http.HandlerFunc) route {
		return route{method: "GET", path: path, access: accessOperate, handler: h, answer: typeBinary, summary: summary}
	}
	return []route{
		get("/debug/pprof/", "Profiles of the process, by name.", pprof.Index),
		get("/debug/pprof/profile", "CPU profile.", pprof.Profile),
		get("/debug/pprof/trace", "Trace of the scheduler.", pprof.Trace),
	}
}

// handler is the mux with every route behind its checks.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		h := http.Handler(r.handler)
		if !r.ownBody {
			h = s.bounded(h)
		}
		h = s.admitted(r.access, h)
		if r.changes {
			h = s.audited(h)
		}
		if r.duplex {
			h = s.duplex(h)
		}
		mux.Handle(r.method+" "+r.path, h)
	}
	return s.sameSite(mux)
}
