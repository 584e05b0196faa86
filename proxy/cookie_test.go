package proxy

import (
	"maps"
	"testing"
)

func TestCookieRoundTrip(t *testing.T) {
	key := CookieKey("secret", "LFSC1")
	for _, s := range []seen{
		{epoch: 1, txids: map[uint32]uint64{}},
		{epoch: 1<<64 - 1, txids: map[uint32]uint64{1: 1, 0xffffffff: 1<<64 - 1}},
		{epoch: 3, txids: map[uint32]uint64{}, primary: true},
	} {
		value := s.encode(key)
		got, ok := decodeSeen(key, value)
		if !ok || got.epoch != s.epoch || got.primary != s.primary || !maps.Equal(got.txids, s.txids) {
			t.Errorf("%q decodes to %+v, %v; want %+v", value, got, ok, s)
		}
		for i := range value {
			b := []byte(value)
			b[i] ^= 1
			if _, ok := decodeSeen(key, string(b)); ok {
				t.Errorf("%q with byte %d changed is still believed", value, i)
			}
		}
		if _, ok := decodeSeen(CookieKey("secret", "LFSC2"), value); ok {
			t.Error("a cookie of another cluster is believed")
		}
		if _, ok := decodeSeen(CookieKey("other", "LFSC1"), value); ok {
			t.Error("a cookie of another secret is believed")
		}
	}
}

// A signature does not make nonsense a position: an older version may have signed it.
func TestCookieSignedNonsense(t *testing.T) {
	key := CookieKey("", "")
	for _, text := range []string{"", "1", "2.1", "1.", "1.x", "1.1.", "1.1.1", "1.1.1-", "1.1.-1", "1.1.123456789-1", "1.1.1-11112222333344445"} {
		if s, ok := decodeSeen(key, text+"~"+sign(key, text)); ok {
			t.Errorf("%q is believed: %+v", text, s)
		}
	}
}

func TestMerge(t *testing.T) {
	old := seen{epoch: 2, txids: map[uint32]uint64{1: 10, 2: 20}}
	s := seen{epoch: 2, txids: map[uint32]uint64{2: 15, 3: 30}}
	if got := s.merge(old); !maps.Equal(got.txids, map[uint32]uint64{1: 10, 2: 20, 3: 30}) {
		t.Errorf("merged: %v", got.txids)
	}
	if len(s.txids) != 2 {
		t.Error("merge has changed its receiver")
	}
	s.epoch = 3
	if got := s.merge(old); !maps.Equal(got.txids, s.txids) {
		t.Errorf("merged with another epoch: %v", got.txids)
	}
	many := seen{epoch: 2, txids: map[uint32]uint64{}}
	for id := range uint32(maxCookieDBs) {
		many.txids[100+id] = 1
	}
	if got := many.merge(seen{epoch: 2}); got.primary {
		t.Error("as many databases as there may be, and the reads go to the primary")
	}
	if got := many.merge(old); !got.primary || len(got.txids) != 0 {
		t.Errorf("too many databases: %+v", got)
	}
	if got := s.merge(seen{epoch: 3, primary: true}); !got.primary {
		t.Error("a client whose reads had to go to the primary may read elsewhere too soon")
	}
}

func TestReached(t *testing.T) {
	s := seen{epoch: 1, txids: map[uint32]uint64{1: 10, 2: 20}}
	for _, tt := range []struct {
		at   map[uint32]uint64
		want bool
	}{
		{map[uint32]uint64{1: 10, 2: 20}, true},
		{map[uint32]uint64{1: 11, 2: 20, 3: 1}, true},
		{map[uint32]uint64{1: 10, 2: 19}, false},
		{map[uint32]uint64{2: 20}, false},
		{nil, false},
	} {
		if got := s.reached(func(id uint32) uint64 { return tt.at[id] }); got != tt.want {
			t.Errorf("reached(%v) = %v", tt.at, got)
		}
	}
	if (seen{primary: true}).reached(func(uint32) uint64 { return 1 }) {
		t.Error("a cookie that wants the primary is content with a replica")
	}
}

func FuzzCookie(f *testing.F) {
	key := CookieKey("k", "c")
	f.Add(seen{epoch: 1, txids: map[uint32]uint64{1: 2}}.encode(key))
	f.Add("1.1.1-1~")
	f.Fuzz(func(t *testing.T, value string) {
		if s, ok := decodeSeen(key, value); ok {
			if again, ok := decodeSeen(key, s.encode(key)); !ok || !maps.Equal(again.txids, s.txids) {
				t.Errorf("%q: %+v does not survive", value, s)
			}
		}
	})
}
