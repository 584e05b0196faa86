package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/leasehttp"
)

// entry is a key of Consul; the zero value is a key that does not exist.
type entry struct {
	Value       []byte
	Session     string // of the lock's holder; empty: nobody
	ModifyIndex uint64
}

func (e entry) exists() bool { return e.ModifyIndex != 0 }
func (e entry) held() bool   { return e.Session != "" }

// waiting is a read that is answered once the key has changed since index, at the latest after for_.
type waiting struct {
	index uint64 // 0: at once
	for_  time.Duration
}

func (l *Leaser) get(ctx context.Context, key string) (entry, uint64, error) {
	return l.getAfter(ctx, key, waiting{})
}

// getAfter reads one key, from a leader that has made sure that it still is one, and the index to wait
// for a change from.
func (l *Leaser) getAfter(ctx context.Context, key string, w waiting) (entry, uint64, error) {
	q := "?consistent"
	if w.index != 0 {
		q += fmt.Sprintf("&index=%d&wait=%dms", w.index, max(1, w.for_.Milliseconds()))
	}
	var entries []entry
	h, err := l.api.Do(ctx, leasehttp.Request{
		Method: http.MethodGet, Path: kvPath(key) + q, Header: l.header(), Longer: w.for_ + w.for_/16,
	}, &entries)
	if leasehttp.IsStatus(err, http.StatusNotFound) {
		return entry{}, 0, nil
	}
	if err != nil {
		return entry{}, 0, err
	}
	if len(entries) != 1 || !entries[0].exists() {
		return entry{}, 0, fmt.Errorf("consul: asked for the key %s, got %d keys", key, len(entries))
	}
	index, err := strconv.ParseUint(h.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return entry{}, 0, fmt.Errorf("consul: X-Consul-Index of key %s: %w", key, err)
	}
	return entries[0], index, nil
}

// putNew stores value unless the key exists.
func (l *Leaser) putNew(ctx context.Context, key string, value []byte) error {
	_, err := l.api.Do(ctx, leasehttp.Request{
		Method: http.MethodPut, Path: kvPath(key) + "?cas=0", Header: l.header(), Body: value,
	}, nil)
	return err
}

func kvPath(key string) string {
	segments := strings.Split(key, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return "/v1/kv/" + strings.Join(segments, "/")
}

// createSession makes a session that nothing but time and its owner ends. The health check that Consul
// adds to a session by default is left out: it would end the lease of a primary that is well, at once,
// because its agent is not.
func (l *Leaser) createSession(ctx context.Context) (string, error) {
	var answer struct{ ID string }
	_, err := l.api.Do(ctx, leasehttp.Request{
		Method: http.MethodPut, Path: "/v1/session/create", Header: l.header(),
		Body: map[string]any{
			"Name":       "litefs",
			"TTL":        l.opt.TTL.String(),
			"LockDelay":  l.opt.LockDelay.String(),
			"Behavior":   "delete",
			"NodeChecks": []string{},
		},
	}, &answer)
	if err == nil && answer.ID == "" {
		err = errors.New("consul: a new session has no id")
	}
	return answer.ID, err
}

func (l *Leaser) destroySession(ctx context.Context, id string) error {
	_, err := l.api.Do(ctx, leasehttp.Request{
		Method: http.MethodPut, Path: "/v1/session/destroy/" + url.PathEscape(id), Header: l.header(),
	}, nil)
	return err
}

// kvOp is one operation of a transaction on keys.
type kvOp struct {
	Verb    string
	Key     string
	Value   []byte `json:",omitempty"`
	Session string `json:",omitempty"`
	Index   uint64 `json:",omitempty"`
}

// rollbackError is a transaction of which nothing was done.
type rollbackError struct{ what string }

func (e *rollbackError) Error() string { return "consul did not do it: " + e.what }

// denied reports whether it was for want of a permission, and not for the state of the key.
func (e *rollbackError) denied() bool { return strings.Contains(e.what, "ermission denied") }

// transact does all operations or, with a *rollbackError, none. It returns the index of the write.
func (l *Leaser) transact(ctx context.Context, ops ...kvOp) (uint64, error) {
	body := make([]map[string]kvOp, len(ops))
	for i, op := range ops {
		body[i] = map[string]kvOp{"KV": op}
	}
	var answer struct {
		Results []struct{ KV entry }
	}
	_, err := l.api.Do(ctx, leasehttp.Request{
		Method: http.MethodPut, Path: "/v1/txn", Header: l.header(), Body: body,
	}, &answer)
	var status *leasehttp.StatusError
	if errors.As(err, &status) && status.Code == http.StatusConflict {
		return 0, rolledBack(status.Body)
	}
	if err != nil {
		return 0, err
	}
	if len(answer.Results) == 0 {
		return 0, errors.New("consul: a transaction was done and has no result")
	}
	return answer.Results[len(answer.Results)-1].KV.ModifyIndex, nil
}

func rolledBack(body []byte) error {
	var answer struct {
		Errors []struct{ What string }
	}
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Errors) == 0 {
		return fmt.Errorf("consul: a transaction was not done and the answer does not say why: %.100q", body)
	}
	var what []string
	for _, e := range answer.Errors {
		what = append(what, e.What)
	}
	return &rollbackError{strings.Join(what, "; ")}
}
