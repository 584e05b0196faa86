// Package litefs replicates SQLite databases from one node to others.
//
// It is the façade of the project: a Store holds the databases of one node, a DB is one of them,
// and the small types around them (positions, leases, the frames of the stream, subscriptions) are
// what the edges above it speak: the mount, the network, the lease backends. Every algorithm lives
// in a package below this one.
//
// A database has a position, Pos: the number of its last transaction (TXID) and the checksum of its
// pages after it. Two nodes with equal positions hold equal bytes. Replication moves a node from one
// position to the next by LTX files, each of which names the position it starts from and the one it
// ends at.
package litefs
