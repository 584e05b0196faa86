package leaseserver

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// The bucket of an S3 server, and who may use it.
const (
	S3Bucket    = "bucket"
	S3AccessKey = "litefs-test"
	S3SecretKey = "litefs-test-secret"
)

// S3 starts an S3 server (versitygw) with one bucket, whose objects are files below Dir and stay over a
// restart.
func S3(ctx context.Context, o Options) (*Server, error) {
	binary, err := builtBinary(ctx, "versitygw")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(o.Dir, "s3")
	if err := os.MkdirAll(filepath.Join(root, S3Bucket), 0o700); err != nil {
		return nil, err
	}
	argv := []string{binary, "--port", "127.0.0.1:" + ports[0], "posix", root}
	if o.Nice {
		argv = append([]string{"nice", "-n", "19"}, argv...)
	}
	s := &Server{
		URL:  "http://127.0.0.1:" + ports[0],
		argv: argv,
		env:  []string{"ROOT_ACCESS_KEY=" + S3AccessKey, "ROOT_SECRET_KEY=" + S3SecretKey},
		log:  o.Log,
		// Without credentials that is a refusal.
		probe: func(ctx context.Context, url string) error { return answers(ctx, url+"/") },
	}
	return s, s.Start(ctx)
}

// answers reports whether requests are answered, in whatever way.
func answers(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
