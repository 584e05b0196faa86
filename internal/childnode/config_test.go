package childnode

import "testing"

// An address that was given, and that nobody listens on yet, is not given again.
func TestFreeAddrGivesEachOnce(t *testing.T) {
	given := make(map[string]bool)
	for range 600 {
		addr, err := FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		if given[addr] {
			t.Fatalf("%s is given twice", addr)
		}
		given[addr] = true
	}
}
