package http

import (
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// vitals is what a question for health is answered from.
type vitals struct {
	primary bool // may write
	mounted bool
	synced  bool // had all that the primary had, once; always on a primary
	lag     time.Duration
	maxLag  time.Duration // 0: any
}

// healthy says whether, and why, in one line.
type healthy func(v vitals) (ok bool, why string)

func healthAlive(v vitals) (bool, string) {
	if v.primary || v.maxLag == 0 {
		return true, "ok"
	}
	return fresh(v)
}

func healthReady(v vitals) (bool, string) {
	switch {
	case !v.mounted:
		return false, "not mounted yet"
	case v.primary:
		return true, "primary"
	case !v.synced:
		return false, "this node never had all that the primary had"
	}
	return true, "replica"
}

func healthPrimary(v vitals) (bool, string) {
	if !v.primary {
		return false, "this node is not the primary"
	}
	return true, "primary"
}

func healthReplica(v vitals) (bool, string) {
	if v.primary {
		return false, "this node is the primary"
	}
	return fresh(v)
}

// fresh is whether the copy of a replica is young enough. One that never had everything has no age.
func fresh(v vitals) (bool, string) {
	switch {
	case !v.synced:
		return false, "this node never had all that the primary had"
	case v.maxLag > 0 && v.lag > v.maxLag:
		return false, fmt.Sprintf("the copy is %v old, max-lag is %v", v.lag.Round(time.Millisecond), v.maxLag)
	}
	return true, "replica"
}

// health answers 200 or 503, with the reason in one line.
func (s *Server) health(is healthy) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		maxLag, err := parseMaxLag(r.URL.Query())
		if err != nil {
			s.refuse(w, r, http.StatusBadRequest, err.Error())
			return
		}
		ok, why := is(s.vitals(maxLag))
		w.Header().Set("Cache-Control", "no-store")
		if !ok {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		s.answer(w, r, "text/plain; charset=utf-8", []byte(why+"\n"))
	}
}

func (s *Server) vitals(maxLag time.Duration) vitals {
	lag, synced := s.src.Lag()
	return vitals{primary: s.src.IsPrimary(), mounted: s.src.MountDir() != "", synced: synced, lag: lag, maxLag: maxLag}
}

func parseMaxLag(q url.Values) (time.Duration, error) {
	v := q.Get("max-lag")
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("max-lag %.32q is no duration above 0, like 2s", v)
	}
	return d, nil
}
