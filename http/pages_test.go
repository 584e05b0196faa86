package http

import (
	"errors"
	"net/http"
	"testing"

	"github.com/litefs/litefs"
)

// TestPages_Handshake: a node that compares pages is let in as one that follows is.
func TestPages_Handshake(t *testing.T) {
	url := testServer(t, newFakeSource("a.db"), "", fastLimits()).URL()
	_, err := testClient("").Pages(t.Context(), url, litefs.PagesQuery{DBID: 99})
	if serr := (*StatusError)(nil); !errors.As(err, &serr) || serr.Code != http.StatusNotFound {
		t.Errorf("pages of a database that is not there: %v, want %d", err, http.StatusNotFound)
	}
}
