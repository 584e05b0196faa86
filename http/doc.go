// Package http is the network between nodes: a primary's Server, from which replicas stream the
// transactions of its databases, and the Client with which they do.
//
// # Stream
//
// A replica sends POST /stream over HTTP/1.1, in the clear or over TLS; HTTP/2 would do as well. The request's headers are
// the handshake:
//
//	Litefs-Protocol: 1             version of this exchange
//	Litefs-Ltx: 3                  version of the LTX files in it; they do not tell it themselves
//	Litefs-Cluster-Id: ...         empty on a replica that has not met its primary yet
//	Litefs-Id: ...                 the replica's node id
//	Litefs-Epoch: 7                the latest epoch the replica knows, decimal
//	Litefs-Sum: 1f2e3d4c           checksum of those above
//	Authorization: Bearer ...      when a token is configured
//
// Both bodies travel in blocks with checksums (blocks.go). The request's begins with the position that the
// replica has of each of its databases: their number as uint32, then for each its id uint32, TXID uint64
// and checksum uint64, all big-endian. It stays open, for Ack, Resume and Heartbeat frames.
//
// The answer is refused with a status and one line of text, or it is 200 with the same headers, of the
// primary, and an endless body of stream frames (litefs.StreamFrame). A DB frame names a database; the
// LTX frames that follow it are of that database, each followed by a whole LTX file that joins the
// position the replica has then, or that is a snapshot. Larger files come in Chunk frames, which name
// their database themselves. Databases take turns, one file or chunk each, so that none waits for the
// backlog of another; one whose bytes are not acknowledged waits. Heartbeats come each second, from both
// sides: a replica that gets no byte for five gives the connection up.
//
// docs/replication.md has the whole of it.
//
// # Others
//
// GET /health, and with the token GET /info (JSON), /metrics (Prometheus) and /events (NDJSON).
//
// A node without a token accepts and makes connections on loopback addresses only.
package http
