// Package e2e tests the command as a whole: nodes are child processes started from configuration
// files, applications are child processes with real SQLite, and what counts in the end is the data
// directory, verified without the daemon that wrote it.
//
// The network between nodes is a faulty proxy (internal/faultnet) or, in the long tests, namespaces that
// are cut off from each other (internal/netns, which wants the command ip). Readers in C, Go and Python
// check an invariant with each read.
//
// TestSoak* are long and random; they do little unless LITEFS_SOAK holds a duration.
package e2e
