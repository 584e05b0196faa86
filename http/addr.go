package http

import (
	"fmt"
	"net/netip"
	"syscall"
)

// checkListen and checkDial are the Control functions of a node without a token. They see the address
// that a name was resolved to, which is the one that counts, before it is bound or connected to.

func checkListen(_, address string, _ syscall.RawConn) error {
	if isLoopback(address) {
		return nil
	}
	return fmt.Errorf("http.addr %s can be reached from other machines: set http.token, or listen on 127.0.0.1", address)
}

func checkDial(_, address string, _ syscall.RawConn) error {
	if isLoopback(address) {
		return nil
	}
	return fmt.Errorf("node %s is on another machine: set http.token to the token of that node", address)
}

// isLoopback reports whether address, an IP address and port, is reached from this machine only.
// An address without an IP stands for all of the machine's.
func isLoopback(address string) bool {
	ap, err := netip.ParseAddrPort(address)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}
