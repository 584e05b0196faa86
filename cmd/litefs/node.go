package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/daemon"
	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/verify"
)

// nodeFlags are the flags of a command that looks at a node: by its
// configuration, by the URL of the running node, or by its data directory
// alone.
type nodeFlags struct {
	configFlags
	url  string
	data string
	// keyFile has the keys of an encrypted log.
	keyFile string
}

func (n *nodeFlags) register(f *flags) {
	n.configFlags.register(f)
	f.StringVar(&n.url, "url", "", "`URL` of a running node of this machine, like http://127.0.0.1:20202; "+config.TokenVariable+" holds its credential")
	f.StringVar(&n.data, "data", "", "data `DIR` of a node, running or not")
}

// registerKeys registers the flag of a command that reads the log.
func (n *nodeFlags) registerKeys(f *flags) {
	f.StringVar(&n.keyFile, "key-file", "", "`FILE` of keys of an encrypted log (default those of the configuration, else of "+config.LogKeyVariable+")")
}

// logKeys are the keys of the node's log; nil when there are none.
func (n *nodeFlags) logKeys(ctx context.Context) (*logkey.Keys, error) {
	var data config.Data
	switch {
	case n.keyFile != "":
		text, err := os.ReadFile(n.keyFile)
		if err != nil {
			return nil, config.Invalid(err)
		}
		data.LogKeys = config.Secret(text)
	case n.url == "" && n.data == "":
		cfg, err := n.load(nil)
		if err != nil {
			return nil, err
		}
		data = cfg.Data
	}
	keys, err := daemon.LogKeys(ctx, data)
	return keys, config.Invalid(err)
}

// dataDir is where the data of the node lies on this machine.
func (n *nodeFlags) dataDir(ctx context.Context) (string, error) {
	named := 0
	for _, s := range []string{n.path, n.url, n.data} {
		if s != "" {
			named++
		}
	}
	switch {
	case named > 1:
		return "", usagef("give one of -config, -url and -data")
	case n.data != "":
		dir, err := filepath.Abs(n.data)
		if err != nil {
			return "", fmt.Errorf("-data %s: %w", n.data, err)
		}
		return dir, nil
	case n.url != "":
		return askDataDir(ctx, n.url)
	}
	cfg, err := n.load(nil)
	if err != nil {
		return "", err
	}
	return cfg.Data.Dir, nil
}

// blame marks what the command line named wrongly as its fault. A data directory
// that is missing where the configuration says is not: the node may never have
// run.
func (n *nodeFlags) blame(err error) error {
	switch {
	case errors.Is(err, verify.ErrNoDatabase), errors.Is(err, verify.ErrNoEntry), errors.Is(err, logkey.ErrNoKey):
		return config.Invalid(err)
	case errors.Is(err, verify.ErrNotDataDir) && n.data != "":
		return config.Invalid(err)
	}
	return err
}

// infoTimeout bounds a question to a node of this machine.
const infoTimeout = 10 * time.Second

// maxInfoBytes bounds its answer.
const maxInfoBytes = 64 << 20

// askDataDir asks the node at url where its data lies.
func askDataDir(ctx context.Context, url string) (string, error) {
	url, err := config.NodeURL(url)
	if err != nil {
		return "", usagef("-url %v", err)
	}
	token, err := config.EnvToken(config.Source{})
	if err != nil {
		return "", err
	}
	var info struct {
		Path string `json:"path"`
	}
	if err := getJSON(ctx, url+"/info", token, &info); err != nil {
		return "", err
	}
	if !filepath.IsAbs(info.Path) {
		return "", fmt.Errorf("the node at %s does not say where its data lies: give -config or -data", url)
	}
	return info.Path, nil
}

// getJSON decodes what a node answers. No proxy of the environment stands
// between: the credential goes to the node alone.
func getJSON(ctx context.Context, url string, token config.Secret, v any) (err error) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("ask %s: the node refuses the credential: set %s to its http.token", url, config.TokenVariable)
	default:
		return fmt.Errorf("ask %s: the answer is %s, want 200 OK", url, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxInfoBytes)).Decode(v); err != nil {
		return fmt.Errorf("ask %s: the answer is not a node's: %w", url, err)
	}
	return nil
}
