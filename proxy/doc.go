// Package proxy sends the web requests of an application to where they can be
// answered: reads to the application on this node, as soon as it has what the
// client has written before, and writes to the node that is the primary.
//
// rules.go decides what a request is, cookie.go what a client has to see, both
// without clock or network; the rest acts. docs/proxy.md has the whole.
package proxy
