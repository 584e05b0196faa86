package kubernetes

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/leasehttp"
	"github.com/litefs/litefs/lease/cas"
)

// store keeps documents as Leases.
type store struct {
	client    *leasehttp.Client
	path      string // of the collection
	namespace string
	name      string
	dir       string // of the service account; "": none
}

var _ cas.Store = (*store)(nil)

const apiVersion = "coordination.k8s.io/v1"

// lease is the part of the object that is read and written here. A patch leaves the rest as it is.
type lease struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Spec       *spec    `json:"spec,omitempty"`
}

type metadata struct {
	Name            string            `json:"name"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
}

// spec shows people and their tools who has the lease. Only HolderIdentity and LeaseTransitions are read
// again: the times are of the holder's clock.
type spec struct {
	HolderIdentity       string `json:"holderIdentity"`
	LeaseDurationSeconds int32  `json:"leaseDurationSeconds,omitempty"`
	AcquireTime          string `json:"acquireTime,omitempty"`
	RenewTime            string `json:"renewTime,omitempty"`
	LeaseTransitions     int32  `json:"leaseTransitions"`
}

// timeForm is that of metav1.MicroTime.
const timeForm = "2006-01-02T15:04:05.000000Z07:00"

func (s *store) String() string {
	return fmt.Sprintf("the Lease %s/%s of kubernetes at %s", s.namespace, s.name, s.client.Base())
}

func (s *store) Close() { s.client.Close() }

// object is the name of the Lease that has a document, and annotation where in it.
func (s *store) object(name string) string {
	if name == cas.LockName {
		return s.name
	}
	return s.name + "-" + name
}

func annotation(name string) string {
	if name == cas.LockName {
		name = "lease"
	}
	return "litefs/" + name
}

// Get is cas.Store's. Without a resourceVersion in the query the API server reads the latest.
func (s *store) Get(ctx context.Context, name string) (cas.Doc, error) {
	var l lease
	err := s.do(ctx, http.MethodGet, s.path+"/"+s.object(name), "", nil, &l)
	if leasehttp.IsStatus(err, http.StatusNotFound) {
		return cas.Doc{}, nil
	}
	if err != nil {
		return cas.Doc{}, err
	}
	if l.Metadata.ResourceVersion == "" {
		return cas.Doc{}, fmt.Errorf("the Lease %s has no resourceVersion", s.object(name))
	}
	d := cas.Doc{Version: l.Metadata.ResourceVersion}
	text, ok := l.Metadata.Annotations[annotation(name)]
	switch {
	case name == cas.LockName:
		d.Value, err = l.lock(text, ok)
	case ok && name == cas.StateName:
		d.Value = []byte(text)
	case ok:
		d.Value, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil {
		return cas.Doc{}, fmt.Errorf("the Lease %s: %w", s.object(name), err)
	}
	return d, nil
}

// lock is the document of the lock: its annotation, and what others can change in the spec.
func (l *lease) lock(text string, ok bool) ([]byte, error) {
	if l.Spec == nil {
		l.Spec = new(spec)
	}
	if !ok {
		if l.Spec.HolderIdentity != "" {
			return nil, fmt.Errorf("is held by %.100q and was not written by litefs: give litefs another lease.kubernetes.name", l.Spec.HolderIdentity)
		}
		text = "{}"
	}
	k, err := cas.DecodeLock([]byte(text))
	if err != nil {
		return nil, err
	}
	token := max(k.Token, uint64(max(0, l.Spec.LeaseTransitions)))
	if l.Spec.HolderIdentity == "" {
		k = cas.Lock{} // somebody has made it nobody's
	}
	k.Token = token
	return k.Encode(), nil
}

// Put is cas.Store's.
func (s *store) Put(ctx context.Context, name string, value []byte, version string) (string, error) {
	l, err := s.encode(name, value, version, time.Now())
	if err != nil {
		return "", err
	}
	var written lease
	if version == "" {
		err = s.do(ctx, http.MethodPost, s.path, "application/json", l, &written)
	} else {
		err = s.do(ctx, http.MethodPatch, s.path+"/"+l.Metadata.Name, "application/merge-patch+json", l, &written)
	}
	switch {
	case leasehttp.IsStatus(err, http.StatusConflict), version != "" && leasehttp.IsStatus(err, http.StatusNotFound):
		return "", cas.ErrConflict
	case err == nil && written.Metadata.ResourceVersion == "":
		err = fmt.Errorf("the Lease %s was written and has no resourceVersion", l.Metadata.Name)
	}
	return written.Metadata.ResourceVersion, err
}

// encode is the object with a document, written at now in the place of version.
func (s *store) encode(name string, value []byte, version string, now time.Time) (l lease, err error) {
	l = lease{APIVersion: apiVersion, Kind: "Lease", Metadata: metadata{Name: s.object(name), ResourceVersion: version}}
	text := string(value)
	switch name {
	case cas.LockName:
		if l.Spec, err = specOf(value, now); err != nil {
			return lease{}, err
		}
	case cas.StateName:
	default:
		text = base64.StdEncoding.EncodeToString(value)
	}
	l.Metadata.Annotations = map[string]string{annotation(name): text}
	return l, nil
}

// specOf shows a lock that is written at now.
func specOf(value []byte, now time.Time) (*spec, error) {
	k, err := cas.DecodeLock(value)
	if err != nil {
		return nil, err
	}
	if k.Token > math.MaxInt32 {
		return nil, fmt.Errorf("the token %d is no number of transitions: remove the Leases and begin anew", k.Token)
	}
	sp := &spec{LeaseTransitions: int32(k.Token)}
	if !k.Held() {
		return sp, nil
	}
	ttl, err := time.ParseDuration(k.TTL)
	if err != nil {
		return nil, err
	}
	sp.HolderIdentity = k.Hostname + "_" + k.ID
	sp.LeaseDurationSeconds = int32(math.Ceil(ttl.Seconds()))
	sp.RenewTime = now.UTC().Format(timeForm)
	if k.Renewals == 0 {
		sp.AcquireTime = sp.RenewTime
	}
	return sp, nil
}

// do does one request, with the token that is in force now.
func (s *store) do(ctx context.Context, method, path, contentType string, body, out any) error {
	h := http.Header{"Accept": {"application/json"}}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	if s.dir != "" {
		token, err := os.ReadFile(s.file("token"))
		if err != nil {
			return fmt.Errorf("the token of the service account: %w", err)
		}
		text := strings.TrimSpace(string(token))
		if text == "" || strings.ContainsAny(text, "\r\n") {
			return errors.New("the token of the service account in " + s.file("token") + " is no token")
		}
		h.Set("Authorization", "Bearer "+text)
	}
	_, err := s.client.Do(ctx, leasehttp.Request{Method: method, Path: path, Header: h, Body: body}, out)
	return err
}

// file is one of the service account.
func (s *store) file(name string) string { return filepath.Join(s.dir, name) }
