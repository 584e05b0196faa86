package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// parseBool takes YAML 1.2's words and those that YAML 1.1 added.
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "yes", "on":
		return true, nil
	case "false", "no", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration like 10m or 1m30s", s)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", s)
	}
	return d, nil
}

// parsePositive is parseDuration for what would spin at zero.
func parsePositive(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && d == 0 {
		err = fmt.Errorf("%q must be more than 0", s)
	}
	return d, err
}

// parseCount reads a number from 1 to most.
func parseCount(s string, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("%q is not a number from 1 to %d", s, most)
	}
	return n, nil
}

// parseSize reads a number of bytes. K, M, G and T are powers of 1024, with or
// without "B" or "iB" after them.
func parseSize(s string) (int64, error) {
	notSize := fmt.Errorf("%q is not a size like 512MB or 10GB", s)

	digits := 0
	for digits < len(s) && '0' <= s[digits] && s[digits] <= '9' {
		digits++
	}
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%q is too large", s)
	} else if err != nil {
		return 0, notSize
	}

	unit := strings.ToUpper(strings.TrimSpace(s[digits:]))
	if unit == "" || unit == "B" {
		return n, nil
	}
	power := strings.IndexByte("KMGT", unit[0]) + 1
	if rest := unit[1:]; power == 0 || rest != "" && rest != "B" && rest != "IB" {
		return 0, notSize
	}
	shift := 10 * uint(power)
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return n << shift, nil
}

// formatSize is the shortest text that parseSize reads as n.
func formatSize(n int64) string {
	units := []string{"", "KB", "MB", "GB", "TB"}
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units)-1 {
		n /= 1024
		i++
	}
	return strconv.FormatInt(n, 10) + units[i]
}

// checkAddr accepts what a listener can be opened on.
func checkAddr(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not an address like 127.0.0.1:%s", s, DefaultPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q: the port %q is not a number from 0 to 65535", s, port)
	}
	return nil
}

// addrIsLoopback reports whether only this machine can reach the address.
// ":20202" is every interface. A name other than localhost is not looked up:
// what it means tomorrow is not ours to decide.
func addrIsLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && hostIsLoopback(host)
}

func hostIsLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// checkURL accepts the address of a node: a scheme, a host, perhaps a port.
// It never repeats a URL that carries a password.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("is not a URL like http://10.0.0.1:" + DefaultPort)
	}
	if u.User != nil {
		return errors.New("must not carry a user or password: the credential is http.token")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("%q is not a URL like http://10.0.0.1:%s", s, DefaultPort)
	}
	if port := u.Port(); port != "" {
		if err := checkAddr(u.Host); err != nil {
			return err
		}
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q must end after the host and port", s)
	}
	return nil
}

// checkToken accepts what fits into an HTTP header.
func checkToken(s string) error {
	if s == "" {
		return errors.New("is empty: draw one with: head -c 32 /dev/urandom | base64")
	}
	if len(s) > maxTokenBytes {
		return fmt.Errorf("is %d bytes long, at most %d are allowed", len(s), maxTokenBytes)
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return errors.New("must be printable ASCII without spaces")
		}
	}
	return nil
}

const maxTokenBytes = 1024
