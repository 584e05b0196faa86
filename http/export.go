package http

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs"
)

// headerPos is the position of what an answer holds, as litefs.Pos prints it.
const headerPos = "Litefs-Pos"

// handleExport answers with the bytes of a database, as a file that SQLite opens: all that had been
// committed when the request came. Its size is known beforehand, so that a reader sees a torn one.
func (s *Server) handleExport(w http.ResponseWriter, r *http.Request) {
	db, ok := s.byName(r.URL.Query().Get("name"))
	if !ok {
		s.refuse(w, r, http.StatusNotFound, "no database has that name: GET /info lists them")
		return
	}
	if err := db.Settle(); err != nil {
		s.refuse(w, r, http.StatusServiceUnavailable, err.Error())
		return
	}
	snap, err := db.SnapshotLTX(r.Context())
	if err != nil {
		s.refuse(w, r, http.StatusServiceUnavailable, fmt.Sprintf("no snapshot of %s: %v", db.Name(), err))
		return
	}
	err = s.export(w, snap)
	if err = errors.Join(err, snap.Close()); err != nil {
		s.opt.Logger.Warn("export cut off", "db", db.Name(), "remote", r.RemoteAddr, "error", err)
	}
}

func (s *Server) export(w http.ResponseWriter, snap *litefs.LTXReader) error {
	dec := ltx.NewDecoder(bufio.NewReaderSize(snap, maxBlock))
	if err := dec.DecodeHeader(); err != nil {
		s.fault(w, err)
		return err
	}
	h := dec.Header()
	w.Header().Set("Content-Type", "application/vnd.sqlite3")
	w.Header().Set("Content-Length", fmt.Sprint(int64(h.Commit)*int64(h.PageSize)))
	w.Header().Set(headerPos, snap.Pos().String())
	out := newStreamWriter(w, http.NewResponseController(w), s.limits.stall)
	if err := copyPages(out, dec); err != nil {
		return err
	}
	return out.Flush()
}

// fault answers that something is wrong with this node.
func (s *Server) fault(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

// copyPages writes the pages of a snapshot one after the other; the lock page is not in it, and zero.
func copyPages(w io.Writer, dec *ltx.Decoder) error {
	h := dec.Header()
	page := make([]byte, h.PageSize)
	for pgno := uint32(1); pgno <= h.Commit; pgno++ {
		if pgno == h.LockPgno() {
			clear(page)
		} else {
			var ph ltx.PageHeader
			if err := dec.DecodePage(&ph, page); err != nil {
				return fmt.Errorf("page %d of the snapshot: %w", pgno, err)
			}
			if ph.Pgno != pgno {
				return fmt.Errorf("snapshot has page %d, want %d", ph.Pgno, pgno)
			}
		}
		if _, err := w.Write(page); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) byName(name string) (Database, bool) {
	for _, db := range s.src.Databases() {
		if db.Name() == name {
			return db, true
		}
	}
	return nil, false
}

// Export is a database on its way: a file that SQLite opens, of Size bytes.
type Export struct {
	io.Reader
	Pos  litefs.Pos
	Size int64

	close func() error
}

// Close ends the transfer.
func (e *Export) Close() error { return e.close() }

// Export asks the node at rawurl for a database. The caller closes it. The reader fails when nothing comes
// for a while, and with io.ErrUnexpectedEOF when the node breaks off.
func (c *Client) Export(ctx context.Context, rawurl, name string) (_ *Export, err error) {
	u, err := endpoint(rawurl, "export")
	if err != nil {
		return nil, fmt.Errorf("export of %s: %w", name, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	conn := c.newConnection()
	defer func() {
		if err != nil {
			cancel(nil)
			conn.close()
			err = fmt.Errorf("export of %s from %s: %w", name, rawurl, err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u+"?name="+url.QueryEscape(name), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(conn, req)
	if err != nil {
		return nil, err
	}
	pos, err := litefs.ParsePos(resp.Header.Get(headerPos))
	if err == nil && resp.ContentLength < 0 {
		err = errors.New("the answer has no length")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("answer: %w", err), resp.Body.Close())
	}
	return &Export{
		Reader: &patientReader{ctx: ctx, cancel: cancel, r: resp.Body, patience: c.timeouts.stall},
		Pos:    pos, Size: resp.ContentLength,
		close: func() error {
			cancel(nil)
			err := resp.Body.Close()
			conn.close()
			return err
		},
	}, nil
}
