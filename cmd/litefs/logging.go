package main

import (
	"io"
	"log/slog"

	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/litefs/litefs/internal/config"
)

// newLogger is what the node says, on standard error, and all that there is to say in the file that
// the configuration names, and with loud on standard output. The file is closed at the end.
func newLogger(cfg *config.Config, std stdio, loud bool) (*slog.Logger, io.Closer) {
	handlers := []slog.Handler{logHandler(cfg.Log, std.err)}
	all := &slog.HandlerOptions{Level: slog.LevelDebug}
	if loud {
		handlers = append(handlers, slog.NewTextHandler(std.out, all))
	}
	file := &lumberjack.Logger{ // opens nothing before the first line
		Filename: cfg.Trace.Path, MaxSize: cfg.Trace.MaxSize, MaxBackups: cfg.Trace.MaxCount, Compress: cfg.Trace.Compress,
	}
	if cfg.Trace.Live() {
		handlers = append(handlers, slog.NewTextHandler(file, all))
	}
	if len(handlers) == 1 {
		return slog.New(handlers[0]), file
	}
	return slog.New(slog.NewMultiHandler(handlers...)), file
}

func logHandler(c config.Log, w io.Writer) slog.Handler {
	o := &slog.HandlerOptions{}
	if c.Debug {
		o.Level = slog.LevelDebug
	}
	if c.Format == config.LogJSON {
		return slog.NewJSONHandler(w, o)
	}
	if !c.Timestamp {
		// Without a time of its own the line gets the journal's or the container's.
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.NewTextHandler(w, o)
}
