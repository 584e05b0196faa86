package kubefake

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// The answers that a client decides by.
func TestAnswers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "leases")
	s, err := Open(file, "apps", "")
	if err != nil {
		t.Fatal(err)
	}
	const leases = "/apis/coordination.k8s.io/v1/namespaces/apps/leases"
	const head = `"apiVersion":"coordination.k8s.io/v1","kind":"Lease"`
	const merge = "application/merge-patch+json"
	for i, c := range []struct {
		method, path, contentType, body string
		code                            int
		want                            string
	}{
		{"GET", leases + "/a", "", "", 404, `"reason":"NotFound"`},
		{"GET", "/apis/coordination.k8s.io/v1/namespaces/other/leases/a", "", "", 404, `"reason":"NotFound"`},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"A"}}`, 422, `"reason":"Invalid"`},
		{"POST", leases, "", `{"kind":"Pod","metadata":{"name":"a"}}`, 400, `"reason":"BadRequest"`},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"a","resourceVersion":"5"}}`, 500, `"Failure"`},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"a"},"spec":{"leaseDurationSeconds":0}}`, 422, "leaseDurationSeconds"},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"a"},"spec":{"leaseTransitions":2147483648}}`, 422, "leaseTransitions"},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"a"},"spec":{"renewTime":"2026-11-30T08:00:00Z"}}`, 400, "renewTime"},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"a","labels":{"x":"y"}},"status":{},"spec":{"leaseTransitions":1}}`, 201, `"resourceVersion":"1001"`},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"a"}}`, 409, `"reason":"AlreadyExists"`},
		{"PATCH", leases + "/a", "application/json", `{}`, 415, `"Failure"`},
		{"PATCH", leases + "/a", merge, `{"metadata":{"resourceVersion":"1000"}}`, 409, `"reason":"Conflict"`},
		{"PATCH", leases + "/a", merge, `{"metadata":{"resourceVersion":"1001","annotations":{"litefs/lease":"v"}},"spec":{"holderIdentity":"h"}}`, 200, `"resourceVersion":"1002"`},
		{"PATCH", leases + "/a", merge, `{"metadata":{"uid":"x"}}`, 422, "immutable"},
		{"GET", leases + "/a", "", "", 200, `"annotations":{"litefs/lease":"v"}`},
		{"GET", leases + "/a", "", "", 200, `"labels":{"x":"y"}`},
		{"GET", leases + "/a", "", "", 200, `"spec":{"holderIdentity":"h","leaseTransitions":1}`},
		{"PATCH", leases + "/b", merge, `{}`, 404, `"reason":"NotFound"`},
		{"DELETE", leases + "/a", "", "", 200, "Success"},
		{"POST", leases, "", `{` + head + `,"metadata":{"name":"a"}}`, 201, `"resourceVersion":"1004"`},
		{"PUT", leases + "/a", "", "", 405, `"Failure"`},
	} {
		if i%2 == 1 { // what it knows outlives it
			if s, err = Open(file, "apps", ""); err != nil {
				t.Fatal(err)
			}
		}
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", c.contentType)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		body := strings.TrimSpace(w.Body.String())
		if w.Code != c.code || !strings.Contains(body, c.want) || !json.Valid([]byte(body)) {
			t.Errorf("%s %s %s: got %d %s, want %d with %s", c.method, c.path, c.body, w.Code, body, c.code, c.want)
		}
	}
	r := httptest.NewRequest(http.MethodGet, leases+"/a", nil)
	r.Header.Set("Authorization", "Bearer wrong")
	w := httptest.NewRecorder()
	if s, err = Open(file, "apps", "right"); err != nil {
		t.Fatal(err)
	}
	s.ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized {
		t.Errorf("a wrong token: %d", w.Code)
	}
}
