// Package e2e tests the command as a whole: nodes are child processes started from configuration
// files, applications are child processes with real SQLite, and what counts in the end is the data
// directory, verified without the daemon that wrote it.
//
// TestSoak* are long and random; they do little unless LITEFS_SOAK holds a duration.
package e2e
