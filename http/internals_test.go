package http

import (
	"io"
	"net/http"
)

// What the tests outside the package need to speak as another node would.

// NewBlockWriter is newBlockWriter.
func NewBlockWriter(w io.Writer) io.Writer { return newBlockWriter(w) }

// Handshake sets the headers of a handshake, as a node of this identity sends them.
func Handshake(h http.Header, clusterID, nodeID, epoch string) {
	h.Set(headerProtocol, protocolVersion)
	h.Set(headerLTX, ltxVersion)
	h.Set(headerClusterID, clusterID)
	h.Set(headerID, nodeID)
	h.Set(headerEpoch, epoch)
	h.Set(headerSum, handshakeSum(h))
}
