// Package kubefake answers for Lease objects as the API server of Kubernetes does, so far as a lease of
// litefs goes: there is no API server for tests. It is written after the documents of the API, with the
// answers (status, reason) of a server of version 1.30.
//
// What it does: GET, POST, PATCH (merge patch) and DELETE of Leases in one namespace; a resourceVersion
// that grows with each write of any object; 409 for a version that has passed and for a name that is
// taken; 404, 401, 415, 422. What it does not: watches, lists, other patches, managed fields, admission.
package kubefake

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server is an http.Handler. It is safe for concurrent use.
type Server struct {
	namespace string
	token     string // of the one account; "": nobody needs one
	file      string // where the objects lie

	mu   sync.Mutex // guards what is below
	data data
}

type data struct {
	Revision uint64                    `json:"revision"`
	Leases   map[string]map[string]any `json:"leases"` // by name
}

// Open returns a server with the objects that are in a file, which it makes.
func Open(file, namespace, token string) (*Server, error) {
	s := &Server{namespace: namespace, token: token, file: file, data: data{Revision: 1000, Leases: map[string]map[string]any{}}}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &s.data); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return s, nil
}

// status is an error as the API server puts it.
type status struct {
	code            int
	reason, message string
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 3<<20))
	if err != nil {
		return // the client is gone
	}
	code, object, failure := s.answer(r, body)
	if failure != nil {
		code, object = failure.code, map[string]any{
			"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{},
			"status": "Failure", "message": failure.message, "reason": failure.reason, "code": failure.code,
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // the client is gone
}

func (s *Server) answer(r *http.Request, body []byte) (int, map[string]any, *status) {
	if s.token != "" && r.Header.Get("Authorization") != "Bearer "+s.token {
		return 0, nil, &status{401, "Unauthorized", "Unauthorized"}
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/apis/coordination.k8s.io/v1/namespaces/"+s.namespace+"/leases")
	name, item := strings.CutPrefix(rest, "/")
	if !ok || rest != "" && (!item || strings.Contains(name, "/")) {
		return 0, nil, &status{404, "NotFound", "the server could not find the requested resource"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.data.Leases[name]
	if item && found == nil {
		return 0, nil, &status{404, "NotFound", fmt.Sprintf("leases.coordination.k8s.io %q not found", name)}
	}
	switch {
	case item && r.Method == http.MethodGet:
		return 200, found, nil
	case item && r.Method == http.MethodPatch:
		if r.Header.Get("Content-Type") != "application/merge-patch+json" {
			return 0, nil, &status{415, "UnsupportedMediaType", "the body of the request was in an unknown format"}
		}
		return s.patch(name, found, body)
	case item && r.Method == http.MethodDelete:
		delete(s.data.Leases, name)
		s.data.Revision++
		return s.saved(200, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	case !item && r.Method == http.MethodPost:
		return s.create(body)
	}
	return 0, nil, &status{405, "MethodNotAllowed", "the server does not allow this method on the requested resource"}
}

// nameForm is that of a DNS subdomain.
var nameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func (s *Server) create(body []byte) (int, map[string]any, *status) {
	object, failure := decode(body)
	if failure != nil {
		return 0, nil, failure
	}
	meta := child(object, "metadata")
	name, _ := meta["name"].(string)
	switch {
	case text(meta, "resourceVersion") != "":
		return 0, nil, &status{500, "InternalError", "resourceVersion should not be set on objects to be created"}
	case text(meta, "namespace") != "" && text(meta, "namespace") != s.namespace:
		return 0, nil, &status{400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request"}
	case len(name) > 253 || !nameForm.MatchString(name):
		return 0, nil, invalid(name, "metadata.name", "a lowercase RFC 1123 subdomain is wanted")
	case s.data.Leases[name] != nil:
		return 0, nil, &status{409, "AlreadyExists", fmt.Sprintf("leases.coordination.k8s.io %q already exists", name)}
	}
	meta["namespace"] = s.namespace
	meta["uid"] = fmt.Sprintf("%08x-0000-4000-8000-%012x", rand.Uint32(), rand.Uint64()>>16)
	meta["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
	return s.store(201, name, object)
}

func (s *Server) patch(name string, found map[string]any, body []byte) (int, map[string]any, *status) {
	var patch map[string]any
	if err := json.Unmarshal(body, &patch); err != nil {
		return 0, nil, &status{400, "BadRequest", "error decoding patch: " + err.Error()}
	}
	old := child(found, "metadata")
	// A version in the patch is a condition.
	if version := text(child(patch, "metadata"), "resourceVersion"); version != "" && version != text(old, "resourceVersion") {
		return 0, nil, &status{409, "Conflict", fmt.Sprintf("Operation cannot be fulfilled on leases.coordination.k8s.io %q: the object has been modified; please apply your changes to the latest version and try again", name)}
	}
	object := merge(found, patch)
	meta := child(object, "metadata")
	for _, fixed := range []string{"name", "namespace", "uid", "creationTimestamp"} {
		if text(meta, fixed) != text(old, fixed) {
			return 0, nil, invalid(name, "metadata."+fixed, "field is immutable")
		}
	}
	return s.store(200, name, object)
}

// store checks an object, gives it a version, and keeps it.
func (s *Server) store(code int, name string, object map[string]any) (int, map[string]any, *status) {
	if failure := validate(name, object); failure != nil {
		return 0, nil, failure
	}
	for field := range object {
		switch field {
		case "apiVersion", "kind", "metadata", "spec":
		default:
			delete(object, field) // as fields that a server does not know
		}
	}
	s.data.Revision++
	child(object, "metadata")["resourceVersion"] = strconv.FormatUint(s.data.Revision, 10)
	s.data.Leases[name] = object
	return s.saved(code, object)
}

// saved writes all objects to the file before they are seen.
func (s *Server) saved(code int, object map[string]any) (int, map[string]any, *status) {
	b, err := json.Marshal(s.data)
	if err == nil {
		err = os.WriteFile(s.file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(s.file+".new", s.file)
	}
	if err != nil {
		return 0, nil, &status{500, "InternalError", err.Error()}
	}
	return code, object, nil
}

// decode reads an object. It is a copy of nothing that is kept.
func decode(body []byte) (map[string]any, *status) {
	var object map[string]any
	if err := json.Unmarshal(body, &object); err != nil {
		return nil, &status{400, "BadRequest", "the object provided is unrecognized: " + err.Error()}
	}
	if object["apiVersion"] != "coordination.k8s.io/v1" || object["kind"] != "Lease" {
		return nil, &status{400, "BadRequest", "the object provided is no Lease of coordination.k8s.io/v1"}
	}
	return object, nil
}

// maxAnnotations bounds the annotations of an object, keys and values, in bytes.
const maxAnnotations = 256 << 10

var (
	annotationForm = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
	microTimeForm  = "2006-01-02T15:04:05.000000Z07:00"
)

func validate(name string, object map[string]any) *status {
	size := 0
	for key, value := range child(child(object, "metadata"), "annotations") {
		v, ok := value.(string)
		if size += len(key) + len(v); !ok || !annotationForm.MatchString(key) || size > maxAnnotations {
			return invalid(name, "metadata.annotations", "bad key, no string, or too long")
		}
	}
	spec := child(object, "spec")
	for field, least := range map[string]float64{"leaseDurationSeconds": 1, "leaseTransitions": 0} {
		value, there := spec[field]
		n, ok := value.(float64)
		if there && (!ok || n < least || n != float64(int32(n))) {
			return invalid(name, "spec."+field, fmt.Sprintf("must be an int32 of %v or more", least))
		}
	}
	for _, field := range []string{"acquireTime", "renewTime"} {
		if value := text(spec, field); value != "" {
			if _, err := time.Parse(microTimeForm, value); err != nil {
				return &status{400, "BadRequest", field + ": Lease in version \"v1\" cannot be handled as a Lease: " + err.Error()}
			}
		}
	}
	return nil
}

func invalid(name, field, why string) *status {
	return &status{422, "Invalid", fmt.Sprintf("Lease.coordination.k8s.io %q is invalid: %s: %s", name, field, why)}
}

// merge is old with a merge patch (RFC 7396) applied. It shares nothing with either.
func merge(old, patch map[string]any) map[string]any {
	merged := map[string]any{}
	for k, v := range old {
		if m, ok := v.(map[string]any); ok {
			v = merge(m, nil)
		}
		merged[k] = v
	}
	for k, v := range patch {
		m, ok := v.(map[string]any)
		switch {
		case v == nil:
			delete(merged, k)
		case ok:
			merged[k] = merge(child(merged, k), m)
		default:
			merged[k] = v
		}
	}
	return merged
}

// child is a field that is an object; an empty one if it is not there.
func child(object map[string]any, field string) map[string]any {
	if m, ok := object[field].(map[string]any); ok {
		return m
	}
	return map[string]any{}
}

func text(object map[string]any, field string) string {
	s, _ := object[field].(string)
	return s
}
