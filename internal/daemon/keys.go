package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/seal"
)

// ArchiveKeys returns the keys of a configuration's archive, or of the environment; nil when there are none.
func ArchiveKeys(ctx context.Context, b config.Backup) (*seal.Keys, error) {
	return keysFrom(ctx, b.Keys, b.KeyCommand, "backup.key", config.BackupKeyVariable)
}

// LogKeys returns the keys of the logs of a configuration, or of the environment; nil when there are none.
func LogKeys(ctx context.Context, d config.Data) (*logkey.Keys, error) {
	keys, err := keysFrom(ctx, d.LogKeys, d.LogKeyCommand, "data.log-key", config.LogKeyVariable)
	if keys == nil || err != nil {
		return nil, err
	}
	return &logkey.Keys{Operator: keys, Off: d.LogInClear}, nil
}

// keyCommandPatience bounds a command that prints keys.
const keyCommandPatience = 30 * time.Second

// keysFrom takes keys from a file, whose text is given, a command or the environment. key is what the keys of the configuration
// begin with.
func keysFrom(ctx context.Context, file config.Secret, command, key, variable string) (*seal.Keys, error) {
	text, from := string(file), key+"-file"
	if command != "" {
		ctx, cancel := context.WithTimeout(ctx, keyCommandPatience)
		defer cancel()
		from = key + "-command"
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(failed.Stderr)))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		text = string(out)
	} else if text == "" {
		var ok bool
		if text, ok = os.LookupEnv(variable); !ok {
			return nil, nil
		}
		from = "the environment variable " + variable
	}
	keys, err := seal.ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return keys, nil
}
