package http

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// TLSFiles name the PEM files of a node's identity. The zero value is no TLS.
type TLSFiles struct {
	Cert, Key string // the node's certificate, with what it is signed by, and its key

	// CA signs the certificates of all nodes. With it nodes show each other their certificates; without
	// it a server admits any client that has the token, and a client trusts what the system trusts.
	CA string
}

// IsZero reports whether there is no TLS.
func (f TLSFiles) IsZero() bool { return f == TLSFiles{} }

// certificates keeps what is in the files, and reads them again when they have changed: certificates are
// renewed under a node that runs.
type certificates struct {
	files  TLSFiles
	logger *slog.Logger // may be nil

	mu     sync.Mutex
	stamps [3]fileStamp
	cert   *tls.Certificate // nil without Cert
	ca     *x509.CertPool   // nil without CA
}

type fileStamp struct {
	mod  time.Time
	size int64
}

// openCertificates reads the files. What they hold may change, but must be right now.
func openCertificates(files TLSFiles, logger *slog.Logger) (*certificates, error) {
	id := &certificates{files: files, logger: logger}
	stamps, err := id.stat()
	if err != nil {
		return nil, err
	}
	if err := id.load(stamps); err != nil {
		return nil, err
	}
	return id, nil
}

func (id *certificates) stat() (stamps [3]fileStamp, err error) {
	for i, name := range []string{id.files.Cert, id.files.Key, id.files.CA} {
		if name == "" {
			continue
		}
		fi, err := os.Stat(name)
		if err != nil {
			return stamps, fmt.Errorf("http.tls: %w", err)
		}
		stamps[i] = fileStamp{fi.ModTime(), fi.Size()}
	}
	return stamps, nil
}

func (id *certificates) load(stamps [3]fileStamp) error {
	var cert *tls.Certificate
	if id.files.Cert != "" {
		c, err := tls.LoadX509KeyPair(id.files.Cert, id.files.Key)
		if err != nil {
			return fmt.Errorf("http.tls.cert %s and http.tls.key %s: %w", id.files.Cert, id.files.Key, err)
		}
		cert = &c
	}
	var ca *x509.CertPool
	if id.files.CA != "" {
		pem, err := os.ReadFile(id.files.CA)
		if err != nil {
			return fmt.Errorf("http.tls.ca: %w", err)
		}
		ca = x509.NewCertPool()
		if !ca.AppendCertsFromPEM(pem) {
			return fmt.Errorf("http.tls.ca %s holds no certificate in PEM form", id.files.CA)
		}
	}
	id.stamps, id.cert, id.ca = stamps, cert, ca
	return nil
}

// current returns what the files hold now, or held when they were last right: the cert and the key of a
// renewal are not written at one moment.
func (id *certificates) current() (*tls.Certificate, *x509.CertPool) {
	id.mu.Lock()
	defer id.mu.Unlock()
	stamps, err := id.stat()
	if err == nil && stamps == id.stamps {
		return id.cert, id.ca
	}
	if err == nil {
		err = id.load(stamps)
	}
	if id.logger != nil {
		if err != nil {
			id.logger.Error("changed TLS files are not used", "error", err)
		} else {
			id.logger.Info("TLS files have changed and are used", "cert", id.files.Cert)
		}
	}
	return id.cert, id.ca
}

// server returns the configuration of a server that shows the identity.
func (id *certificates) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, ca := id.current()
			c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2", "http/1.1"}}
			if ca != nil {
				c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, ca
			}
			return c, nil
		},
	}
}

// client returns the configuration of one connection of a client that shows the identity.
func (id *certificates) client() *tls.Config {
	cert, ca := id.current()
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c
}

var errNoCert = errors.New("http.tls.cert is missing: a server with TLS has a certificate")
