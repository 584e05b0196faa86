package http

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/litefs/litefs"
)

// handleStream checks the handshake, reads the positions and hands over to a session.
func (s *Server) handleStream(w http.ResponseWriter, r *http.Request) {
	if code, line := s.checkHandshake(r); code != 0 {
		s.refuse(w, r, code, line)
		return
	}
	if !s.src.Serving() {
		s.refuseReplica(w, r)
		return
	}

	wanted, err := readFilter(r.Header)
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	rc := http.NewResponseController(w)
	body := bufio.NewReader(newBlockReader(r.Body))
	posMap, err := s.readPositions(rc, body)
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}

	s.remember(r)
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set(headerProtocol, protocolVersion)
	h.Set(headerLTX, ltxVersion)
	h.Set(headerClusterID, s.src.ClusterID())
	h.Set(headerID, s.src.NodeID())
	h.Set(headerEpoch, strconv.FormatUint(s.src.Epoch(), 10))
	h.Set(headerPromises, "1")
	h.Set(headerSum, handshakeSum(h))

	conn := s.src.ReplicaRegistry().Connect(r.Header.Get(headerID), r.RemoteAddr)
	url := r.Header.Get(headerURL)
	if _, err := endpoint(url, ""); err != nil {
		url = ""
	}
	conn.Describe(url, r.Header.Get(headerCandidate) == "true")

	logger := s.opt.Logger.With("replica", r.Header.Get(headerID), "remote", r.RemoteAddr)
	logger.Info("replica connected", "databases", len(posMap))
	out := newBlockStreamWriter(w, rc, s.limits.stall)
	err = s.runSession(r.Context(), out, posMap, wanted, ackSource{
		r: body, rc: rc, stall: s.limits.stall, pages: r.Header.Get(headerPages) != "", remote: r.RemoteAddr,
		conn: conn, id: r.Header.Get(headerID),
		promises: r.Header.Get(headerPromises) != "", levels: r.Header.Get(headerPromises) == promisesLevels,
	}, logger)
	level := slog.LevelInfo
	if err != nil && !errors.Is(err, errReplicaEnded) && r.Context().Err() == nil && s.ctx.Err() == nil {
		level = slog.LevelWarn // neither side asked for the end
	}
	logger.Log(r.Context(), level, "replica disconnected", "reason", err)
}

// duplex has next answer while the body of the request stays open, also by a refusal: in HTTP/1.1 net/http would read the
// body to its end first, and after a refusal as much of it as comes in time.
func (s *Server) duplex(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.EnableFullDuplex(), rc.SetReadDeadline(time.Now().Add(s.limits.body))); err != nil {
			s.refuse(w, r, http.StatusInternalServerError, err.Error())
			return
		}
		next.ServeHTTP(w, r)
	})
}

// replicaMemory is what a Source also is that remembers where its replicas listen.
type replicaMemory interface {
	RememberReplica(nodeID, told, remote string) error
}

// remember keeps where the replica listens. Without it the stream is as good: only what the replica has
// cannot be asked for after a power cut.
func (s *Server) remember(r *http.Request) {
	memory, ok := s.src.(replicaMemory)
	told := r.Header.Get(headerURL)
	if !ok || told == "" {
		return
	}
	if err := memory.RememberReplica(r.Header.Get(headerID), told, r.RemoteAddr); err != nil {
		s.opt.Logger.Warn("where a replica listens is not remembered", "replica", r.Header.Get(headerID), "remote", r.RemoteAddr, "error", err)
	}
}

// checkHandshake returns the status and the line to refuse r with; 0 if it may stream.
func (s *Server) checkHandshake(r *http.Request) (code int, line string) {
	h := r.Header
	if got := h.Get(headerProtocol); got != protocolVersion {
		return http.StatusBadRequest, fmt.Sprintf("this node speaks version %s of the stream, the request says %.32q: run the same version of litefs on both nodes", protocolVersion, got)
	}
	if got := h.Get(headerLTX); got != ltxVersion {
		return http.StatusBadRequest, fmt.Sprintf("this node sends LTX version %s, the request says %.32q: run the same version of litefs on both nodes", ltxVersion, got)
	}
	id, cluster := h.Get(headerID), h.Get(headerClusterID)
	switch {
	case id == "" || len(id) > maxIDLen:
		return http.StatusBadRequest, fmt.Sprintf("%s is %d bytes, want 1 to %d", headerID, len(id), maxIDLen)
	case id != printable(id):
		return http.StatusBadRequest, fmt.Sprintf("%s has bytes that cannot be printed", headerID)
	case len(cluster) > maxIDLen:
		return http.StatusBadRequest, fmt.Sprintf("%s is %d bytes, want at most %d", headerClusterID, len(cluster), maxIDLen)
	case id == s.src.NodeID():
		return http.StatusBadRequest, fmt.Sprintf("node %s cannot follow itself: check the primary's advertise-url, or remove node-id from a copied data directory", id)
	}
	if own := s.src.ClusterID(); cluster != "" && cluster != own {
		return http.StatusConflict, fmt.Sprintf("the replica belongs to cluster %q, this node to %q: correct the advertise-url, or give the replica an empty data directory", cluster, own)
	}
	epoch, err := strconv.ParseUint(h.Get(headerEpoch), 10, 64)
	if err != nil {
		return http.StatusBadRequest, fmt.Sprintf("%s is %.32q, want a number", headerEpoch, h.Get(headerEpoch))
	}
	if own := s.src.Epoch(); epoch > own {
		return http.StatusConflict, fmt.Sprintf("the replica has followed a primary of epoch %d, this node is of epoch %d: it has been replaced, or its data directory is an old copy", epoch, own)
	}
	if got, want := h.Get(headerSum), handshakeSum(h); got != want {
		return http.StatusBadRequest, fmt.Sprintf("the request's headers have the checksum %.32q, want %q: %v", got, want, errCorrupt)
	}
	return 0, ""
}

// readPositions reads the first part of the body, bounded in size and time.
func (s *Server) readPositions(rc *http.ResponseController, body io.Reader) (map[uint32]litefs.Pos, error) {
	if err := rc.SetReadDeadline(time.Now().Add(s.limits.body)); err != nil {
		return nil, fmt.Errorf("read deadline: %w", err)
	}
	posMap, err := readPosMap(body)
	if err != nil {
		return nil, err
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("read deadline: %w", err)
	}
	return posMap, nil
}
