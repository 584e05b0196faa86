package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/leasehttp"
)

// api is the part of etcd's API that a lease needs. Numbers of 64 bits are strings in its JSON, keys
// and values are in base 64, as []byte is, and what is zero is left out.
type api struct {
	client         *leasehttp.Client
	user, password string // user is empty where there is no log-in

	mu    sync.Mutex
	token string // of the log-in; empty: not logged in
}

// keyValue is a key of etcd; the zero value is a key that does not exist.
type keyValue struct {
	Value       []byte `json:"value"`
	ModRevision uint64 `json:"mod_revision,string"`
	Lease       int64  `json:"lease,string"` // that it is bound to; 0: none
}

func (kv keyValue) exists() bool { return kv.ModRevision != 0 }

type header struct {
	Revision uint64 `json:"revision,string"`
}

type rangeResponse struct {
	Header header     `json:"header"`
	KVs    []keyValue `json:"kvs"`
}

// first is the one key of an answer that can have one.
func (r *rangeResponse) first() keyValue {
	if r == nil || len(r.KVs) == 0 {
		return keyValue{}
	}
	return r.KVs[0]
}

// compare is a condition on the revision at which a key was written last; 0: the key does not exist.
type compare struct {
	Key         []byte `json:"key"`
	Target      string `json:"target"`
	Result      string `json:"result"`
	ModRevision uint64 `json:"mod_revision,string"`
}

func absent(key string) compare { return writtenAt(key, 0) }

func writtenAt(key string, revision uint64) compare {
	return compare{Key: []byte(key), Target: "MOD", Result: "EQUAL", ModRevision: revision}
}

// op is one operation of a transaction: one of the two.
type op struct {
	Put *putRequest   `json:"request_put,omitempty"`
	Get *rangeRequest `json:"request_range,omitempty"`
}

type putRequest struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
	Lease int64  `json:"lease,string,omitempty"`
}

type rangeRequest struct {
	Key []byte `json:"key"`
}

func put(key string, value []byte, lease int64) op {
	return op{Put: &putRequest{[]byte(key), value, lease}}
}

func get(key string) op { return op{Get: &rangeRequest{[]byte(key)}} }

type txnRequest struct {
	Compare []compare `json:"compare,omitempty"`
	Success []op      `json:"success,omitempty"`
	Failure []op      `json:"failure,omitempty"`
}

// txn does the operations of Success if all comparisons hold, else those of Failure. It reports which,
// the revision after it, and the key that it read, if it read one.
func (a *api) txn(ctx context.Context, r txnRequest) (success bool, revision uint64, kv keyValue, err error) {
	var answer struct {
		Header    header `json:"header"`
		Succeeded bool   `json:"succeeded"`
		Responses []struct {
			Range *rangeResponse `json:"response_range"`
		} `json:"responses"`
	}
	if err := a.call(ctx, "/v3/kv/txn", r, &answer); err != nil {
		return false, 0, keyValue{}, err
	}
	if answer.Header.Revision == 0 {
		return false, 0, keyValue{}, errors.New("etcd: a transaction has no revision")
	}
	if len(answer.Responses) > 0 {
		kv = answer.Responses[0].Range.first()
	}
	return answer.Succeeded, answer.Header.Revision, kv, nil
}

// get reads one key, after all writes that were answered, and the revision of the store.
func (a *api) get(ctx context.Context, key string) (keyValue, uint64, error) {
	var answer rangeResponse
	err := a.call(ctx, "/v3/kv/range", rangeRequest{[]byte(key)}, &answer)
	return answer.first(), answer.Header.Revision, err
}

type leaseID struct {
	ID int64 `json:"ID,string"`
}

func (a *api) grant(ctx context.Context, ttl time.Duration) (int64, error) {
	var answer leaseID
	err := a.call(ctx, "/v3/lease/grant", map[string]string{"TTL": fmt.Sprint(int64(ttl / time.Second))}, &answer)
	if err == nil && answer.ID == 0 {
		err = errors.New("etcd: a new lease has no id")
	}
	return answer.ID, err
}

// keepAlive resets the TTL of a lease; false: there is no such lease.
func (a *api) keepAlive(ctx context.Context, id int64) (bool, error) {
	var answer struct {
		Result struct {
			TTL int64 `json:"TTL,string"`
		} `json:"result"`
	}
	err := a.call(ctx, "/v3/lease/keepalive", leaseID{id}, &answer)
	return answer.Result.TTL > 0, err
}

// revoke ends a lease and removes what is bound to it. One that has ended is no error.
func (a *api) revoke(ctx context.Context, id int64) error {
	err := a.call(ctx, "/v3/lease/revoke", leaseID{id}, nil)
	if leasehttp.IsStatus(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// awaitRemoval waits until the key is removed at or after a revision, or until limit is over.
func (a *api) awaitRemoval(ctx context.Context, key string, from uint64, limit time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := a.watch(limited, key, from)
	if ctx.Err() == nil && limited.Err() != nil {
		return nil
	}
	return err
}

// watch reads events of a key until one is its removal, or the server ends the watch.
func (a *api) watch(ctx context.Context, key string, from uint64) error {
	h, err := a.header(ctx)
	if err != nil {
		return err
	}
	body, err := a.client.Stream(ctx, leasehttp.Request{
		Method: http.MethodPost, Path: "/v3/watch", Header: h,
		Body: map[string]any{"create_request": map[string]any{"key": []byte(key), "start_revision": fmt.Sprint(from)}},
	})
	if err != nil {
		return a.noteRefusal(err)
	}
	defer body.Close() //nolint:errcheck // it was read
	events := json.NewDecoder(io.LimitReader(body, maxWatch))
	for {
		var e struct {
			Result struct {
				Canceled bool `json:"canceled"`
				Events   []struct {
					Type string `json:"type"` // left out for a write
				} `json:"events"`
			} `json:"result"`
		}
		if err := events.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("etcd: watch the key %s: %w", key, err)
		}
		if e.Result.Canceled {
			return nil
		}
		for _, event := range e.Result.Events {
			if event.Type == "DELETE" {
				return nil
			}
		}
	}
}

// maxWatch bounds what is read of one watch, in bytes; each event repeats the key's value.
const maxWatch = 1 << 20

// call does one call, logging in first where that is wanted and again when the log-in has ended.
func (a *api) call(ctx context.Context, path string, in, out any) error {
	for again := true; ; again = false {
		h, err := a.header(ctx)
		if err != nil {
			return err
		}
		_, err = a.client.Do(ctx, leasehttp.Request{Method: http.MethodPost, Path: path, Header: h, Body: in}, out)
		err = a.noteRefusal(err)
		if !again || a.user == "" || !leasehttp.IsStatus(err, http.StatusUnauthorized) {
			return err
		}
	}
}

// noteRefusal forgets a log-in that has ended.
func (a *api) noteRefusal(err error) error {
	if leasehttp.IsStatus(err, http.StatusUnauthorized) {
		a.mu.Lock()
		a.token = ""
		a.mu.Unlock()
	}
	return err
}

// header carries the log-in.
func (a *api) header(ctx context.Context) (http.Header, error) {
	if a.user == "" {
		return nil, nil
	}
	a.mu.Lock()
	token := a.token
	a.mu.Unlock()
	if token == "" {
		var answer struct {
			Token string `json:"token"`
		}
		_, err := a.client.Do(ctx, leasehttp.Request{
			Method: http.MethodPost, Path: "/v3/auth/authenticate",
			Body: map[string]string{"name": a.user, "password": a.password},
		}, &answer)
		if err != nil {
			return nil, fmt.Errorf("log in to etcd as %s: %w", a.user, err)
		}
		token = answer.Token
		a.mu.Lock()
		a.token = token
		a.mu.Unlock()
	}
	return http.Header{"Authorization": {token}}, nil
}
