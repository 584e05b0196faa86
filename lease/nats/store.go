package nats

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/litefs/litefs/lease/cas"
)

// store keeps documents as keys of a bucket. A bucket is a stream whose name begins with KV_ and whose
// subjects are the keys; the revision of a key is the number of its last message in the stream.
type store struct {
	dialer
	shown    string // the servers, for people
	bucket   string
	key      string
	replicas int

	there atomic.Bool // the bucket answers
}

var _ cas.Store = (*store)(nil)

func (s *store) String() string {
	return fmt.Sprintf("the lease %s of the bucket %s of nats at %s", s.key, s.bucket, s.shown)
}

func (s *store) stream() string { return "KV_" + s.bucket }

func (s *store) subject(name string) string {
	subject := "$KV." + s.bucket + "." + s.key
	if name != cas.LockName {
		subject += "/" + name
	}
	return subject
}

// Codes of errors of JetStream.
const (
	noMessage     = 10037
	otherStream   = 10058 // one of that name is there and has another configuration
	noStream      = 10059
	wrongRevision = 10071
)

// apiError is an answer of JetStream that is not a success.
type apiError struct {
	Status      int    `json:"code"`
	Code        int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string {
	return fmt.Sprintf("jetstream: error %d: %.300s", e.Code, e.Description)
}

func isCode(err error, code int) bool {
	var e *apiError
	return errors.As(err, &e) && e.Code == code
}

// Get is cas.Store's. It asks the stream's leader: another server may answer with an older message.
func (s *store) Get(ctx context.Context, name string) (cas.Doc, error) {
	request, err := json.Marshal(map[string]string{"last_by_subj": s.subject(name)})
	if err != nil {
		return cas.Doc{}, err
	}
	if !s.there.Load() {
		if ok, err := s.probe(ctx); err != nil || !ok {
			return cas.Doc{}, err
		}
	}
	var answer struct {
		Message struct {
			Seq     uint64 `json:"seq"`
			Headers string `json:"hdrs"` // in base 64
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	err = s.api(ctx, "STREAM.MSG.GET."+s.stream(), request, &answer)
	switch {
	case isCode(err, noMessage):
		return cas.Doc{}, nil
	case isCode(err, noStream):
		s.there.Store(false)
		return cas.Doc{}, nil
	case err != nil:
		return cas.Doc{}, err
	}
	m := answer.Message
	headers, err := base64.StdEncoding.DecodeString(m.Headers)
	if err != nil || m.Seq == 0 {
		return cas.Doc{}, fmt.Errorf("jetstream: the message of %s is not what a server should say", s.subject(name))
	}
	d := cas.Doc{Version: strconv.FormatUint(m.Seq, 10)}
	// A key that was removed has a last message that says so.
	if !strings.Contains(string(headers), "KV-Operation:") {
		d.Value = append([]byte{}, m.Data...)
	}
	return d, nil
}

// Put is cas.Store's. Only a write makes the bucket: who looks changes nothing.
func (s *store) Put(ctx context.Context, name string, value []byte, version string) (string, error) {
	m := nats.NewMsg(s.subject(name))
	m.Data = value
	if version == "" {
		version = "0"
	}
	m.Header.Set(expected, version)
	var ack struct {
		Seq uint64 `json:"seq"`
	}
	err := s.request(ctx, m, &ack)
	if version == "0" && errors.Is(err, errNobody) {
		if err = s.makeBucket(ctx); err == nil {
			err = s.request(ctx, m, &ack)
		}
	}
	if isCode(err, wrongRevision) {
		return "", cas.ErrConflict
	}
	if err == nil && ack.Seq == 0 {
		err = errors.New("jetstream: a message was stored and has no number")
	}
	return strconv.FormatUint(ack.Seq, 10), err
}

// probe reports whether the bucket is there, and waits for one that is being made. It asks by a write that
// cannot succeed: a server of version 2.9 crashes when it is asked for a message of a stream that is just
// being made, and a stream takes writes only once it can be read.
func (s *store) probe(ctx context.Context) (bool, error) {
	for {
		m := nats.NewMsg(s.subject("probe"))
		m.Header.Set(expected, strconv.FormatUint(math.MaxInt64, 10))
		err := s.request(ctx, m, nil)
		switch {
		case err == nil:
			return false, fmt.Errorf("the bucket %s takes a write whose condition does not hold: it protects nothing", s.bucket)
		case isCode(err, wrongRevision):
			s.there.Store(true)
			return true, nil
		case !errors.Is(err, errNobody):
			return false, err
		}
		if ok, err := s.listed(ctx); err != nil || !ok {
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, errNobody
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// listed reports whether the server knows the bucket, ready or not.
func (s *store) listed(ctx context.Context) (bool, error) {
	request, err := json.Marshal(map[string]string{"subject": s.subject(cas.LockName)})
	if err != nil {
		return false, err
	}
	var answer struct {
		Streams []string `json:"streams"`
	}
	err = s.api(ctx, "STREAM.NAMES", request, &answer)
	return len(answer.Streams) > 0, err
}

// expected is the header of a write's condition: the number of the key's last message.
const expected = "Nats-Expected-Last-Subject-Sequence"

// makeBucket makes the bucket, as other clients do.
func (s *store) makeBucket(ctx context.Context) error {
	request, err := json.Marshal(map[string]any{
		"name": s.stream(), "subjects": []string{"$KV." + s.bucket + ".>"},
		"retention": "limits", "storage": "file", "num_replicas": s.replicas,
		"max_msgs_per_subject": 1, "max_msgs": -1, "max_bytes": -1, "max_consumers": -1, "max_msg_size": -1,
		"discard": "new", "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true,
	})
	if err != nil {
		return err
	}
	// Another node may be doing the same, with another number of replicas.
	if err := s.api(ctx, "STREAM.CREATE."+s.stream(), request, nil); err != nil && !isCode(err, otherStream) {
		return fmt.Errorf("make the bucket %s with %d replicas: %w", s.bucket, s.replicas, err)
	}
	return nil
}

// checkBucket refuses a bucket that forgets.
func (s *store) checkBucket(ctx context.Context, nc *nats.Conn) error {
	var answer struct {
		Config struct {
			MaxAge  int64  `json:"max_age"` // ns
			Storage string `json:"storage"`
		} `json:"config"`
	}
	err := ask(ctx, nc, nats.NewMsg("$JS.API.STREAM.INFO."+s.stream()), &answer)
	switch c := answer.Config; {
	case isCode(err, noStream):
		return nil // it is made by the first write
	case err != nil:
		return err
	case c.MaxAge != 0:
		return fmt.Errorf("the bucket %s has a TTL, after which it forgets the lease's record: make one without", s.bucket)
	case c.Storage != "file":
		return fmt.Errorf("the bucket %s is kept in %s and forgets all when its server restarts: make one that is kept in files", s.bucket, c.Storage)
	}
	return nil
}

// api calls JetStream's API.
func (s *store) api(ctx context.Context, name string, request []byte, out any) error {
	m := nats.NewMsg("$JS.API." + name)
	m.Data = request
	return s.request(ctx, m, out)
}

// request sends a message and decodes the answer.
func (s *store) request(ctx context.Context, m *nats.Msg, out any) error {
	nc, err := s.connected(ctx, s.checkBucket)
	if err != nil {
		return err
	}
	err = ask(ctx, nc, m, out)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// The connection may be dead, and nothing else would tell for minutes: the next call makes another.
		err = s.drop(nc, err)
	}
	return err
}

// errNobody: no stream takes the message, or nobody the request.
var errNobody = errors.New("nobody answers for JetStream: is it enabled (nats-server -js), and has the stream a leader?")

func ask(ctx context.Context, nc *nats.Conn, m *nats.Msg, out any) error {
	answer, err := nc.RequestMsgWithContext(ctx, m)
	if errors.Is(err, nats.ErrNoResponders) {
		return errNobody
	}
	if err != nil {
		return err
	}
	var failure struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &failure); err != nil {
		return fmt.Errorf("jetstream: the answer is not what a server should say: %w", err)
	}
	if failure.Error != nil {
		return failure.Error
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Data, out); err != nil {
		return fmt.Errorf("jetstream: the answer is not what a server should say: %w", err)
	}
	return nil
}
